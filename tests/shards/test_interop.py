"""The tars are ordinary WebDataset shards: others read them with nothing of ours."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.inspecting.verify import verify
from shards.making.members import Tally, common_ending
from shards.sources.base import Part, Rows
from tests.shards.making import corpus, encoded, jpeg, make, rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("interop")
    source = corpus(folder / "corpus", count=20)
    make(source, folder / "dest")
    return source, folder / "dest"


def test_plain_webdataset_reads_them(made: tuple[Path, Path]) -> None:
    import webdataset

    source, dest = made
    urls = sorted(str(path) for path in dest.glob("*.tar"))
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(found) == 20
    for sample in found:
        assert sample["jpg"] == (source / f"{sample['__key__']}.jpg").read_bytes()
        assert int(sample["cls"]) == int(sample["__key__"][5])
    decoded = next(iter(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")))
    assert decoded["jpg"].shape[2] == 3
    assert decoded["json"] == {"label": decoded["__key__"].split("/")[0]}


def test_datasets_reads_them(made: tuple[Path, Path], tmp_path: Path) -> None:
    import datasets

    source, dest = made
    files = {"train": sorted(str(path) for path in dest.glob("*.tar"))}
    loaded = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path)
    )
    assert len(loaded) == 20
    for row in loaded.cast_column("jpg", datasets.Image(decode=False)):
        assert row["jpg"]["bytes"] == (source / f"{row['__key__']}.jpg").read_bytes()
        assert row["json"] == {"label": row["__key__"].split("/")[0]}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures of three formats, one misnamed, some with a caption; and their shards."""
    folder = tmp_path_factory.mktemp("mixed")
    source = folder / "a"
    source.mkdir()
    for number in range(16):
        image = Image.open(io.BytesIO(jpeg(number)))
        form = ("JPEG", "PNG", "WEBP")[number % 3]
        ending = ("jpeg", "png", "webp")[number % 3] if number != 1 else "jpg"
        (source / f"{number:02d}.{ending}").write_bytes(encoded(image, form))
        if number % 4 == 3:
            (source / f"{number:02d}.txt").write_text("words")
    make(source, folder / "dest")
    return source, folder / "dest"


def test_samples_of_mixed_formats_have_the_same_members(mixed: tuple[Path, Path]) -> None:
    import webdataset

    source, dest = mixed
    urls = sorted(str(path) for path in dest.glob("*.tar"))
    found = {one["__key__"]: one for one in webdataset.WebDataset(urls, shardshuffle=False)}
    assert len(found) == 16
    for path in source.iterdir():
        if path.suffix == ".txt":
            assert found[path.stem]["txt"] == b"words"
        else:
            assert found[path.stem]["jpg"] == path.read_bytes()
    assert sum(one["txt"] == b"" for one in found.values()) == 12
    for one in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"):
        assert one["jpg"].shape == (48, 64, 3)
    assert {str(row["format"]) for row in rows(dest)} == {"jpeg", "png", "webp"}
    assert verify(dest, workers=1).problems == ()


def test_datasets_loses_none_of_mixed_formats(mixed: tuple[Path, Path]) -> None:
    import datasets

    files = sorted(str(path) for path in mixed[1].glob("*.tar"))
    loaded = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    found = list(loaded)
    assert len(found) == 16
    assert all(row["jpg"].size == (64, 48) for row in found)
    assert sorted(row["txt"] for row in found) == [""] * 12 + ["words"] * 4


def test_a_split_that_was_begun_keeps_each_formats_ending(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.mkdir()
    for number in range(6):
        form = ("JPEG", "PNG")[number % 2]
        image = Image.open(io.BytesIO(jpeg(number)))
        (source / f"{number}.{form.lower()}").write_bytes(encoded(image, form))
    (source / "0.txt").write_text("words")
    make(source, tmp_path / "d")
    plan = tmp_path / "d" / ".train.plan.json"
    told = json.loads(plan.read_text())
    assert (told.pop("ending"), told.pop("members")) == ("jpg", ["txt"])
    plan.write_text(json.dumps(told))  # as plans were before
    for path in (tmp_path / "d").glob("train*"):
        path.unlink()
    for touched in (False, True):
        if touched:
            os.utime(source / "0.jpeg", ns=(1, 1))
            (tmp_path / "d" / "train-000000.parquet").unlink()
        make(source, tmp_path / "d")
        members = {str(row["member"]) for row in rows(tmp_path / "d")}
        assert members == {"0.jpg", "1.png", "2.jpg", "3.png", "4.jpg", "5.png"}


def test_two_pictures_of_a_sample_are_both_kept(tmp_path: Path) -> None:
    files = {
        "0.png": encoded(Image.new("RGB", (64, 64)), "PNG"),
        "0.jpg": jpeg(0),
        "1.jpg": jpeg(1),
    }
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    make(f"shards:{tmp_path / 'x.tar'}", tmp_path / "d")
    with tarfile.open(tmp_path / "d" / "train-000000.tar") as tar:
        found = sorted((one.name, one.size) for one in tar)
    assert len(found) == 3
    assert sorted(size for _, size in found) == sorted(map(len, files.values()))


@given(st.lists(st.sampled_from(["a.jpg", "b.JPEG", "c.avifs", "d.png", "e", "f.tiff", "g.x"])))
def test_the_ending_is_that_of_most_names(names: list[str]) -> None:
    tally = Tally()
    rows = Rows(0, tally.take)
    for name in names:
        rows.add(name, Part(name.encode(), 0, 1))
    rows.flush()
    counts = Counter({"jpg": 0})
    usual = {"a": "jpg", "b": "jpg", "c": "avif", "d": "png", "f": "tif"}
    counts.update(usual[name[0]] for name in names if name[0] in usual)
    assert counts[common_ending(tally, [], [])] == max(counts.values())
