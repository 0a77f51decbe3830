"""Pictures that came before are left out, by their bytes or by their look."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from shards.making.duplicates import BANDS, NEAR, band_of, look
from shards.run import shard
from tests.shards.making import SMALL, corpus, encoded, make, rejects, rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = corpus(tmp_path / "corpus", count=12, classes=1) / "class0"
    shutil.copy(folder / "picture0003.jpg", folder / "zcopy.jpg")
    shutil.copy(folder / "picture0003.jpg", folder / "acopy.jpg")
    with Image.open(folder / "picture0005.jpg") as image:
        (folder / "zlook.jpg").write_bytes(encoded(image.resize((138, 96)), "JPEG", quality=60))
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_of_equal_bytes_stays(source: Path, tmp_path: Path, workers: int) -> None:
    summary = make(source, tmp_path / "d", replace(SMALL, dedupe="exact"), workers=workers)
    assert (summary.listed, summary.samples) == (15, 13)
    assert summary.reasons == {"duplicate": 2}
    kept = {str(row["key"]) for row in rows(tmp_path / "d")}
    assert "acopy" in kept
    assert not kept & {"picture0003", "zcopy"}
    details = pq.read_table(tmp_path / "d" / "train.rejects.parquet")["detail"].to_pylist()
    assert details == ["of acopy", "of acopy"]


def test_the_first_of_equal_look_stays(source: Path, tmp_path: Path) -> None:
    summary = make(source, tmp_path / "d", replace(SMALL, dedupe="near"))
    reasons = {name.rpartition("/")[2]: why for name, why in rejects(tmp_path / "d").items()}
    assert reasons == {
        "picture0003.jpg": "duplicate",
        "zcopy.jpg": "duplicate",
        "zlook.jpg": "near duplicate",
    }
    assert summary.samples + summary.rejected == summary.listed == 15


def test_duplicates_are_found_across_splits_and_sources(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    options = replace(SMALL, dedupe="exact", split="train=0.5,val=0.5")
    summaries = shard([str(source), str(other)], tmp_path / "d", options, workers=1)
    assert sum(one.samples for one in summaries) == 13
    assert sum(one.rejected for one in summaries) == 17


def test_photographs_and_their_copies(pictures: Path) -> None:
    def code(image: Image.Image) -> int:
        found = look(encoded(image.convert("RGB"), "JPEG", quality=80), near=True)[1]
        assert found is not None
        return found

    images = [Image.open(path) for path in sorted((pictures / "train").glob("*.jpg"))[:12]]
    codes = [code(image) for image in images]
    for one, image in zip(codes, images, strict=True):
        small = image.resize((image.width // 2, image.height // 2))
        brighter = ImageEnhance.Brightness(image).enhance(1.05)
        for copy in (small, brighter):
            assert (one ^ code(copy)).bit_count() <= NEAR
    apart = [(a ^ b).bit_count() for n, a in enumerate(codes) for b in codes[:n]]
    assert min(apart) > NEAR


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=NEAR))
def test_near_hashes_agree_in_a_band(code: int, flips: set[int]) -> None:
    other = code
    for bit in flips:
        other ^= 1 << bit
    assert any(band_of(code, band) == band_of(other, band) for band in range(BANDS))
    whole = sum(band_of(code, band) << 64 * band // BANDS for band in range(BANDS))
    assert whole == code


def test_what_cannot_be_decoded_has_no_look() -> None:
    assert look(b"no picture", near=True)[1] is None
    grey = Image.fromarray(np.zeros((40, 40), np.uint8))
    stream = io.BytesIO()
    grey.save(stream, "PNG")
    assert look(stream.getvalue(), near=True)[1] is not None
