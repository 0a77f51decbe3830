"""Manifests of splits with very many shards: a table that is read in part."""

from __future__ import annotations

import json
import pickle

import pytest

from shards import Manifest, ShardsError, Stream, shard_table
from shards.inspecting.verify import verify
from shards.shard_table import StoredShards
from tests.shards.made import numbered, write_split


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_table, "MANY", 3)
    monkeypatch.setattr(shard_table, "ROWS", 2)


def test_a_table_says_what_the_list_says(tmp_path, few_are_many, monkeypatch):
    written = write_split(tmp_path, [4, 7, 2, 9, 5], numbered(27))
    read = Manifest.read(tmp_path)
    assert isinstance(read.shards, StoredShards)
    assert list(read.shards) == list(written.shards)
    assert read.shards[-1] == written.shards[4]
    assert read.shards[1:3] == list(written.shards[1:3])
    assert list(read.sizes) == [4, 7, 2, 9, 5]
    assert list(read.byte_sizes) == [one.bytes for one in written.shards]
    assert read.digest == written.digest
    assert pickle.loads(pickle.dumps(read)).shards[2] == written.shards[2]
    said = json.loads((tmp_path / "train.json").read_text())
    assert (said["format"], said["digest"]) == (2, read.digest)
    with pytest.raises(IndexError):
        read.shards[5]


def test_the_same_batches_come_from_a_table_as_from_a_list(tmp_path, monkeypatch):
    def keys(workers: int = 0) -> list[str]:
        opened = Stream(tmp_path, batch_size=4, crop=8, epochs=1, workers=workers)
        return [key for batch in opened for key in batch.keys]

    manifest = write_split(tmp_path, [4, 7, 2, 9, 5], numbered(27))
    wanted = keys()
    monkeypatch.setattr(shard_table, "MANY", 3)
    monkeypatch.setattr(shard_table, "ROWS", 2)
    manifest.write(tmp_path)
    assert (tmp_path / "train.shards.parquet").exists()
    assert keys() == keys(workers=1) == wanted


def test_verify_reads_a_table_and_names_its_damage(tmp_path, few_are_many):
    write_split(tmp_path, [1, 1, 1, 1, 1], numbered(5))
    problems = [one for one in verify(tmp_path).problems if "digest" in str(one)]
    assert not problems
    table = tmp_path / "train.shards.parquet"
    table.write_bytes(table.read_bytes()[:-10])
    with pytest.raises(ShardsError, match=r"train\.shards\.parquet.*missing or damaged"):
        Manifest.read(tmp_path)
    table.unlink()
    with pytest.raises(ShardsError, match="missing or damaged"):
        Manifest.read(tmp_path)
