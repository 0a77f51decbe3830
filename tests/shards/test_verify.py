"""`verify` finds every damage, and names it; `inspect` tells what is there."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shards import Manifest, ShardsError
from shards.inspecting.page import bars, write_page
from shards.inspecting.summary import inspect
from shards.inspecting.verify import verify
from shards.store import Store
from tests.shards.making import corpus, jpeg, make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    source = corpus(folder / "corpus", count=40)
    (source / "class0" / "tiny.jpg").write_bytes(jpeg(1, 8, 8))
    make(source, folder / "dest")
    return folder / "dest"


@pytest.fixture
def dest(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "dest")


def flip(dest: Path) -> None:
    row = pq.read_table(dest / "train-000001.parquet").to_pylist()[3]
    path = dest / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[row["offset"] + 300] ^= 1
    path.write_bytes(data)


def flip_padding(dest: Path) -> None:
    path = dest / "train-000001.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(dest: Path) -> None:
    path = dest / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:20_000])


def lose_tar(dest: Path) -> None:
    (dest / "train-000001.tar").unlink()


def lose_sidecar(dest: Path) -> None:
    (dest / "train-000001.parquet").unlink()


def break_sidecar(dest: Path) -> None:
    (dest / "train-000001.parquet").write_bytes(b"PAR1 no more")


def swap_sidecars(dest: Path) -> None:
    shutil.copy(dest / "train-000000.parquet", dest / "train-000001.parquet")


def add_shard(dest: Path) -> None:
    shutil.copy(dest / "train-000000.tar", dest / "train-000077.tar")


def edit(dest: Path, change: Callable[[dict], None]) -> None:
    path = dest / "train.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def edit_seed(dest: Path) -> None:
    edit(dest, lambda manifest: manifest.update(seed=4))


def edit_checksum(dest: Path) -> None:
    edit(dest, lambda manifest: manifest["shards"][1].update(sha256="0" * 64))


def wrong_count(dest: Path) -> None:
    edit(dest, lambda manifest: manifest.update(samples=41, listed=42))


def wrong_shard_count(dest: Path) -> None:
    edit(dest, lambda manifest: manifest["shards"][1].update(samples=1))


def drop_last_shard(dest: Path) -> None:
    edit(dest, lambda manifest: manifest["shards"].pop())


def break_manifest(dest: Path) -> None:
    (dest / "train.json").write_text("{")


def lose_rejects(dest: Path) -> None:
    (dest / "train.rejects.parquet").unlink()


DAMAGES: dict[Callable[[Path], None], tuple[str, str]] = {
    flip: ("train-000001.tar", "checksum"),
    flip_padding: ("train-000001.tar", "checksum"),
    truncate: ("train-000001.tar", "bytes, not"),
    lose_tar: ("train-000001.tar", "is missing"),
    lose_sidecar: ("train-000001.parquet", "is missing"),
    break_sidecar: ("train-000001.parquet", "damaged"),
    swap_sidecars: ("train-000001.parquet", "not of the shard"),
    add_shard: ("train-000077.tar", "not in the manifest"),
    edit_seed: ("train.json", "edited"),
    edit_checksum: ("train-000001.tar", "checksum"),
    wrong_count: ("train.json", "says 41 samples"),
    wrong_shard_count: ("train-000001.parquet", "not of the shard"),
    drop_last_shard: ("train.json", "planned"),
    break_manifest: ("train.json", "damaged"),
    lose_rejects: ("train.rejects.parquet", "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_is_found(dest: Path, damage: Callable[[Path], None]) -> None:
    damage(dest)
    file, what = DAMAGES[damage]
    problems = verify(dest).problems
    assert any(one.file == file and what in one.what for one in problems), problems


def test_the_sample_with_a_flipped_byte_is_named(dest: Path) -> None:
    key = pq.read_table(dest / "train-000001.parquet").to_pylist()[3]["key"]
    flip(dest)
    assert key in {one.key for one in verify(dest).problems}


def test_a_whole_destination_has_no_problems(whole: Path) -> None:
    alone, together = verify(whole), verify(whole, workers=2)
    assert alone == together
    assert not alone.problems
    assert alone.samples == 40


def test_a_lost_manifest_is_no_success(dest: Path) -> None:
    (dest / "train.json").unlink()
    with pytest.raises(ShardsError, match="never finished"):
        verify(dest)


def test_nothing_to_verify_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardsError, match="holds no shards"):
        verify(tmp_path)


def test_inspect_tells_what_is_there(whole: Path) -> None:
    (facts,) = inspect(whole)
    manifest = Manifest.read(whole)
    assert (facts.samples, facts.listed, facts.rejected) == (40, 41, 1)
    assert facts.reasons == {"too small": 1}
    assert facts.formats == {"jpeg": 40}
    assert facts.width.least == 64
    assert facts.width.greatest == 70
    assert facts.bytes == sum(info.bytes for info in manifest.shards)
    assert facts.digest == manifest.digest


def test_inspect_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardsError, match="has no manifest"):
        inspect(tmp_path)


def test_the_page_shows_histograms_and_pictures(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "pages" / "shards.html"
    write_page(whole, path)
    text = path.read_text()
    assert text.count("data:image/jpeg;base64,") == 40
    assert "41 listed = 40 written + 1 rejected" in text
    assert "class0/picture0000" in text
    for title in ("Shorter side", "Aspect", "kilobytes", "Colour, red"):
        assert title in text
    assert "<script" not in text
    assert [one.name for one in path.parent.iterdir()] == ["shards.html"]


def test_bars_count_every_value() -> None:
    found = bars(np.array([1.0] * 5 + [2.0] * 3 + [1000.0]))
    assert sum(bar.count for bar in found) == 9
    assert max(bar.height for bar in found) == 100
    assert bars(np.array([7.0]))[0].count == 1
    assert bars(np.array([])) == []


@pytest.mark.parametrize("name", ["train-000001.tar", "train-000001.parquet"])
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_looked_at(
    dest: Path, name: str
) -> None:
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs a file that answers reads with EIO")
    (dest / "train-000000.tar").unlink()
    (dest / name).unlink()
    (dest / name).symlink_to("/proc/self/mem")  # its first bytes are nowhere
    problems = {str(problem) for problem in verify(dest).problems}
    assert "train-000000.tar: is missing" in problems
    assert any(problem.startswith(f"{name}: cannot be read: ") for problem in problems)


def test_a_bad_sector_costs_the_samples_on_it(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = pq.read_table(dest / "train-000001.parquet").to_pylist()[3]

    class Disk(io.FileIO):
        """A file with a sector that can't be read."""

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            start = self.tell()
            if self.name.endswith("1.tar") and start <= row["offset"] + 300 < start + len(buffer):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(buffer) or 0

    def disk(store: Store, name: str) -> io.BufferedReader:
        return io.BufferedReader(Disk(str(dest / name)), 512)

    monkeypatch.setattr(Store, "open", disk)
    problems = verify(dest).problems
    assert [problem.key for problem in problems] == ["", row["key"]]
    assert all("Input/output error" in problem.what for problem in problems)
