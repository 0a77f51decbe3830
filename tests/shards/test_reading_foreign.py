"""WebDataset tars that others made."""

from __future__ import annotations

import io
import os
import tarfile

import fsspec
import pytest
import webdataset

from shards import Cache, ShardsError, Stream, open_corpus, stream
from shards.patterns import expand_braces
from shards.reading.foreign import open_tars
from tests.shards.made import encoded, photo, write_split


@pytest.fixture
def tars(tmp_path):
    """Two shards by webdataset's own writer: several members a sample, in folders, in its order."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/part-%03d.tar", maxcount=5, verbose=0) as writer:
        for number in range(10):
            writer.write(
                {
                    "__key__": f"class{number % 2}/{number:03d}",
                    "cls": number,
                    "json": {"number": number},
                    "input.png": encoded(photo(number)),
                }
            )
    return folder


def keys_of(batches):
    return [key for batch in batches for key in batch.keys]


def test_their_tars_are_streamed_with_their_keys(tars, tmp_path):
    for pattern in ("part-*.tar", "part-{000..001}.tar", "part-{000,001}.tar"):
        keys = keys_of(stream(tars / pattern, batch_size=2, crop=16))
        assert sorted(keys) == sorted(f"class{i % 2}/{i:03d}" for i in range(10))
    mixed = Stream({tars / "part-000.tar": 1, tars / "part-001.tar": 1}, batch_size=5, crop=8)
    assert len(next(iter(mixed)).keys) == 5


def test_the_index_is_made_once_and_anew_when_the_tar_changes(tars, monkeypatch):
    pattern = tars / "part-*.tar"
    first = keys_of(stream(pattern, batch_size=2, crop=16))
    assert sorted(path.name for path in tars.glob(".*.index")) == [
        ".part-000.tar.index",
        ".part-001.tar.index",
    ]
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", None)  # a walk over a tar would fail
        assert keys_of(stream(pattern, batch_size=2, crop=16)) == first
    with tarfile.open(tars / "part-001.tar", "a") as tar:
        member = tarfile.TarInfo("new.png")
        data = encoded(photo(99))
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    assert "new" in keys_of(stream(pattern, batch_size=1, crop=16))


def test_a_damaged_index_is_made_anew(tars):
    keys = keys_of(stream(tars / "part-*.tar", batch_size=1, crop=8))
    (tars / ".part-000.tar.index").write_bytes(b"PAR1 nonsense PAR1")
    assert keys_of(stream(tars / "part-*.tar", batch_size=1, crop=8)) == keys


def test_tars_behind_a_url_are_streamed_too(tars, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in tars.glob("*.tar"):
        memory.pipe_file(f"/theirs/{path.name}", path.read_bytes())
    local = keys_of(stream(tars / "part-*.tar", batch_size=2, crop=16))
    cache = Cache(tmp_path / "cache")
    for _ in range(2):
        remote = stream("memory://theirs/part-*.tar", batch_size=2, crop=16, cache=cache)
        assert keys_of(remote) == local


def test_our_own_tars_need_no_manifest(tmp_path):
    samples = [(f"a/{i}", encoded(photo(i))) for i in range(6)]
    write_split(tmp_path / "ours", [2, 4], samples)
    ours = open_corpus(tmp_path / "ours", "train", Cache(), 8)
    theirs = open_tars(tmp_path / "ours" / "train-*.tar", Cache(), 8)
    assert ours.sizes == theirs.sizes
    for shard, size in enumerate(ours.sizes):
        for index in range(size):
            assert ours.sample(shard, index) == theirs.sample(shard, index)


def test_what_is_no_set_of_tars_is_refused(tars, tmp_path):
    with pytest.raises(ShardsError, match=r"no tar matches .*none-\*\.tar"):
        Stream(tars / "none-*.tar", batch_size=1)
    with pytest.raises(ShardsError, match=r"no tar matches .*part-002\.tar"):
        Stream(tars / "part-{000..002}.tar", batch_size=1)
    (tmp_path / "text.tar").write_text("this is no tar" * 100)
    with pytest.raises(ShardsError, match=r"text\.tar is not a whole tar"):
        Stream(tmp_path / "text.tar", batch_size=1)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ShardsError, match="hold no pictures"):
        Stream(tmp_path / "empty.tar", batch_size=1)
    whole = (tars / "part-000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardsError, match=r"cut\.tar is not a whole tar"):
        Stream(tmp_path / "cut.tar", batch_size=1)


def test_a_folder_that_cannot_be_written_to_is_indexed_in_the_cache(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    cache = Cache(tmp_path / "cache")
    next(stream(tars / "part-*.tar", batch_size=1, crop=8, cache=cache))
    assert len(list((tmp_path / "cache" / "index").iterdir())) == 2
    assert not list(tars.glob(".*"))


def test_braces():
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{a,b}/{0..1}.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(ShardsError, match="without its other half"):
        expand_braces("a-{0..1.tar")
