"""What a destination holds already decides what may be done with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.common.atomic import PartialFile
from shards import Manifest, ShardsError
from shards.inspecting.verify import verify
from shards.options import Options
from shards.run import finish_splits
from tests.shards.making import checksums, corpus, jpeg, make


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return corpus(tmp_path / "corpus", count=30)


@pytest.fixture
def dest(source: Path, tmp_path: Path) -> Path:
    make(source, tmp_path / "dest")
    return tmp_path / "dest"


@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_lost_file_is_made_again(source: Path, dest: Path, suffix: str) -> None:
    before = checksums(dest)
    (dest / f"train-000001.{suffix}").unlink()
    assert make(source, dest).made == 1
    assert checksums(dest) == before


def test_a_lost_manifest_is_made_again(source: Path, dest: Path) -> None:
    before = checksums(dest)
    (dest / "train.json").unlink()
    assert make(source, dest).complete
    assert checksums(dest) == before


def test_other_options_are_refused_and_named(source: Path, dest: Path) -> None:
    before = checksums(dest)
    with pytest.raises(ShardsError, match="--seed was 0 and is now 3"):
        make(source, dest, Options(shard_size=60_000, min_side=32, seed=3))
    with pytest.raises(ShardsError, match="--min-side was 32 and is now 33"):
        make(source, dest, Options(shard_size=60_000, min_side=33))
    assert checksums(dest) == before


def test_another_source_is_refused_and_the_difference_named(source: Path, dest: Path) -> None:
    before = checksums(dest)
    (source / "class0" / "extra.jpg").write_bytes(jpeg(99))
    with pytest.raises(ShardsError, match=r"1 new \(class0/extra\)"):
        make(source, dest)
    (source / "class0" / "extra.jpg").rename(source / "class0" / "picture0000.jpg")
    with pytest.raises(ShardsError, match=r"1 of another size \(class0/picture0000\)"):
        make(source, dest)
    (source / "class0" / "picture0000.jpg").unlink()
    with pytest.raises(ShardsError, match=r"1 gone \(class0/picture0000\)"):
        make(source, dest)
    assert checksums(dest) == before


def test_a_picture_changed_in_place_is_noticed(source: Path, dest: Path) -> None:
    path = source / "class1" / "picture0001.jpg"
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardsError, match="picture class1/picture0001 changed"):
        make(source, dest)


def test_pictures_that_were_only_touched_are_the_same(source: Path, dest: Path) -> None:
    for path in source.rglob("*.jpg"):
        os.utime(path, (1, 1))
    (dest / "train-000000.parquet").unlink()
    assert make(source, dest).made == 1


def test_fresh_starts_anew_and_leaves_other_splits(source: Path, dest: Path) -> None:
    make(source, dest, Options(split="val", shard_size=60_000, min_side=32))
    val = {name: sum_ for name, sum_ in checksums(dest).items() if "val" in name}
    options = Options(shard_size=30_000, min_side=32, seed=3)
    assert make(source, dest, options, fresh=True).complete
    assert Manifest.read(dest).seed == 3
    make(source, dest.parent / "other", options)
    train = {name: sum_ for name, sum_ in checksums(dest).items() if "val" not in name}
    assert train == checksums(dest.parent / "other")
    assert {name: sum_ for name, sum_ in checksums(dest).items() if "val" in name} == val


def test_fresh_would_remove_what_other_parts_made(source: Path, dest: Path) -> None:
    before = checksums(dest)
    with pytest.raises(ShardsError, match="would remove what other parts have made"):
        make(source, dest, fresh=True, part=(1, 2))
    assert checksums(dest) == before


def test_a_file_is_no_destination(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"precious")
    with pytest.raises(ShardsError, match="is a file"):
        make(source, tmp_path / "out" / "shards")
    with pytest.raises(ShardsError, match="holds no shards"):
        verify(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"precious"


def test_files_that_nobody_planned_are_refused(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "theirs"
    dest.mkdir()
    (dest / "train-000000.tar").write_bytes(b"precious")
    with pytest.raises(ShardsError, match=r"already holds train-000000\.tar"):
        make(source, dest)
    assert (dest / "train-000000.tar").read_bytes() == b"precious"


def test_finish_refuses_while_a_part_is_missing(source: Path, tmp_path: Path) -> None:
    dest = tmp_path / "parts"
    with pytest.raises(ShardsError, match="nothing to finish"):
        finish_splits(dest)
    make(source, dest, part=(0, 2))
    with pytest.raises(ShardsError, match=r"shards of split 'train' are missing \(1"):
        finish_splits(dest)
    make(source, dest, part=(1, 2))
    (dest / "train.json").unlink()
    assert finish_splits(dest)[0].complete
    assert Manifest.read(dest).samples == 30


def test_what_a_killed_process_left_is_swept_and_no_more(source: Path, dest: Path) -> None:
    dead = dest / ".train-000001.tar.0123456789ab.partial"
    dead.write_bytes(b"half a shard")
    living = PartialFile(dest, "train-000000.tar")
    make(source, dest)
    assert not dead.exists()
    assert living.path.exists()
    living.discard()


def test_a_source_that_changes_meanwhile_is_noticed(source: Path, tmp_path: Path) -> None:
    from shards.making.listing import list_corpus
    from shards.sources import Entry, open_sources

    with open_sources([str(source)]) as (opened,):
        reader = opened.reader()
    (table,) = list_corpus([opened], 0, None).ranges()
    row = table.to_pylist()[0]
    entry = Entry.from_row(row)
    path = source / row["location"].decode()
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ShardsError, match="changed while it was read"):
        reader.read(entry)
    path.unlink()
    with pytest.raises(ShardsError, match="is gone"):
        reader.read(entry)


def test_a_picture_that_is_gone_keeps_no_shard_from_being_made(source: Path, dest: Path) -> None:
    first, second = (
        str(pq.read_table(dest / f"train-{number:06d}.parquet")["key"][0]) for number in (0, 1)
    )
    before = checksums(dest)
    for name in ("train-000001.tar", "train-000001.parquet", "train.json"):
        (dest / name).unlink()
    for key in (first, second):
        (source / f"{key}.jpg").unlink()
    summary = make(source, dest)
    assert (summary.made, summary.samples, summary.reasons) == (1, 29, {"missing": 1})
    assert any("2 pictures are gone" in note for note in summary.notes)
    assert checksums(dest)["train-000000.tar"] == before["train-000000.tar"]
    assert not verify(dest, workers=1).problems


def test_a_file_that_goes_while_shards_are_made_is_a_reject(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shards.making.workers import run_jobs

    def run(*arguments: Any) -> None:
        (source / "class0" / "picture0000.jpg").unlink()
        run_jobs(*arguments)

    monkeypatch.setattr("shards.run.run_jobs", run)
    assert make(source, tmp_path / "d").reasons == {"missing": 1}
