"""Remote shards: a store that fails, stalls, truncates and damages; ranks that share and die."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.common.locks import file_lock
from shards import Cache, ShardsError, ShardsRuntimeError, Stream, stream
from shards.reading import fetch
from shards.reading.cache import CacheFolder, Wanted
from shards.reading.fetch import Fetcher, Patience
from tests.patience import patience, wait_for
from tests.shards.made import numbered, write_split

PROCESSES = multiprocessing.get_context("fork")
QUICK = Patience(attempts=12, pause=0.001, longest_pause=0.01, stall=0.3)


class FaultyFileSystem(LocalFileSystem):
    """Local files behind a store that misbehaves at random; asks are written to a log."""

    protocol = "faulty"
    faults: tuple[str, ...] = ()
    rate = 0.0
    log: Path | None = None
    stall = 1.0
    dice = random.Random(0)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("faulty://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object):
        cls = type(self)
        if cls.log is not None:
            with cls.log.open("a") as file:
                file.write(f"{Path(path).name} {start} {end}\n")
        data = super().cat_file(path, start=start, end=end)
        if cls.faults and cls.dice.random() < cls.rate:
            return self._fault(cls.dice.choice(cls.faults), data)
        return data

    def _fault(self, kind: str, data: bytes) -> bytes:
        if kind == "fail":
            raise ConnectionResetError("connection reset by peer")
        if kind == "stall":
            time.sleep(type(self).stall)
            return data
        if kind == "truncate":
            return data[: len(data) // 2]
        return data[:-600] + bytes(1) * min(600, len(data))  # damage: as long, and wrong


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A split of 6 shards of 10 samples behind a store without faults, and its URL."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    for name, value in (("faults", ()), ("rate", 0.0), ("stall", 1.0), ("log", tmp_path / "asked")):
        monkeypatch.setattr(FaultyFileSystem, name, value)
    monkeypatch.setattr(FaultyFileSystem, "dice", random.Random(0))
    write_split(tmp_path / "store", [10] * 6, numbered(60))
    return f"faulty://{tmp_path}/store"


def asked(tmp_path: Path) -> Counter[str]:
    """How often each file was asked for."""
    lines = (tmp_path / "asked").read_text().splitlines()
    return Counter(line.split()[0] for line in lines)


def tar(tmp_path: Path, number: int) -> Wanted:
    """What the cache is asked for shard `number`."""
    path = tmp_path / "store" / f"train-{number:06d}.tar"
    return Wanted(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def keys_of(batches) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def test_a_remote_epoch_is_the_local_one(store, tmp_path):
    cache = Cache(tmp_path / "cache", patience=QUICK)
    local = list(stream(tmp_path / "store", batch_size=6, crop=8, block=2))
    for _ in range(2):
        remote = list(stream(store, batch_size=6, crop=8, block=2, cache=cache))
        assert keys_of(remote) == keys_of(local)
        assert all(a.images.equal(b.images) for a, b in zip(local, remote, strict=True))
    counts = asked(tmp_path)
    assert {counts[f"train-{i:06d}.tar"] for i in range(6)} == {1}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_whatever_the_store_does(store, tmp_path, monkeypatch, workers):
    wanted = keys_of(stream(tmp_path / "store", batch_size=6, crop=8, block=2))
    monkeypatch.setattr(FaultyFileSystem, "faults", ("fail", "fail", "stall", "truncate", "damage"))
    cache = Cache(tmp_path / "cache", patience=QUICK)
    opened = Stream(store, batch_size=6, crop=8, block=2, epochs=2, cache=cache, workers=workers)
    monkeypatch.setattr(FaultyFileSystem, "rate", 0.4)
    got = keys_of(opened)
    assert got[:60] == wanted
    assert sorted(got[60:]) == sorted(wanted)
    assert not opened.broken
    assert not list((tmp_path / "cache").glob("*/.*"))


def test_a_store_that_stays_silent_ends_the_run_with_one_sentence(store, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache", patience=Patience(3, 0.001, 0.01, stall=0.05))
    opened = stream(store, batch_size=6, crop=8, cache=cache)
    monkeypatch.setattr(FaultyFileSystem, "faults", ("stall",))
    monkeypatch.setattr(FaultyFileSystem, "rate", 1.0)
    with pytest.raises(ShardsRuntimeError, match=r"could not be read in 3 tries: no answer within"):
        next(opened)


def test_a_file_that_is_not_what_the_manifest_says_is_refused(store, tmp_path):
    path = tmp_path / "store" / "train-000003.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    cache = Cache(tmp_path / "cache", patience=QUICK)
    with pytest.raises(ShardsRuntimeError, match=r"train-000003\.tar does not have the checksum"):
        list(stream(store, batch_size=6, crop=8, cache=cache))


def test_shards_made_anew_under_the_same_url_are_fetched_anew(store, tmp_path):
    cache = Cache(tmp_path / "cache", patience=QUICK)
    first = keys_of(stream(store, batch_size=6, crop=8, cache=cache))
    write_split(
        tmp_path / "store", [10] * 6, [(f"new{i}", d) for i, (_, d) in enumerate(numbered(60))]
    )
    second = keys_of(stream(store, batch_size=6, crop=8, cache=cache))
    assert not set(first) & set(second)


def test_the_next_block_is_fetched_before_it_is_needed(store, tmp_path):
    cache = Cache(tmp_path / "cache", patience=QUICK)
    opened = Stream(store, batch_size=5, crop=8, block=2, order=1, cache=cache)
    next(iter(opened))
    fetched = (tmp_path / "cache").glob
    wait_for(lambda: len(list(fetched("*/[!.]*.tar"))) >= 4, "the next block")
    opened.close()
    assert len(list((tmp_path / "cache").glob("*/[!.]*.tar"))) == 4


def taken(cache: Path) -> int:
    """The bytes of the files in a cache; .room is only promised.

    The lock keeps others from making room, so no file grows in the place of one just counted.
    """
    total = 0
    with file_lock(cache / ".lock"):
        for path in cache.glob("*/*[!m]"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
    return total


def test_the_limit_is_kept(store, tmp_path):
    sizes = sorted(path.stat().st_size for path in (tmp_path / "store").glob("*.tar"))
    limit = sum(sizes[-3:]) + 4 * 20000
    cache = Cache(tmp_path / "cache", limit=limit, patience=QUICK)
    wanted = keys_of(stream(tmp_path / "store", batch_size=6, crop=8, block=1))
    got = []
    for batch in stream(store, batch_size=6, crop=8, block=1, cache=cache):
        got += batch.keys
        assert taken(tmp_path / "cache") <= limit
    assert got == wanted
    with pytest.raises(ShardsError, match=r"limit is 1000 bytes, a block of 2 shards"):
        Stream(store, batch_size=1, block=2, cache=Cache(tmp_path / "cache", limit=1000))


def test_who_waits_for_a_file_gets_it_though_readers_hold_it(store, tmp_path):
    folder = CacheFolder(Cache(tmp_path / "cache", patience=QUICK), Fetcher(store, QUICK))
    path = folder.path(tar(tmp_path, 0))
    partial = path.with_name(f".{path.name}")
    arriving = os.open(partial, os.O_RDWR | os.O_CREAT)
    fcntl.flock(arriving, fcntl.LOCK_EX)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(folder.open, tar(tmp_path, 0))
        time.sleep(0.1)  # longer on a busy machine, or it does not wait yet: it gets the file still
        partial.rename(path)
        fcntl.flock(arriving, fcntl.LOCK_SH)  # arrived, and read from now on
        try:
            os.close(waiting.result(timeout=patience(20)))
        finally:
            os.close(arriving)


def test_a_file_in_use_is_never_removed(store, tmp_path, caplog):
    folder = CacheFolder(Cache(tmp_path / "cache", limit=1, patience=QUICK), Fetcher(store, QUICK))
    held = folder.open(tar(tmp_path, 0))
    with caplog.at_level(logging.WARNING):
        os.close(folder.open(tar(tmp_path, 1)))
    assert "all of it is in use" in caplog.text
    assert folder.has(tar(tmp_path, 0))
    os.close(held)
    os.close(folder.open(tar(tmp_path, 2)))
    assert not folder.has(tar(tmp_path, 0))


def _open_all(cache: Cache, url: str, wanted: list[Wanted]) -> None:
    folder = CacheFolder(cache, Fetcher(url, cache.patience))
    for one in wanted:
        os.close(folder.open(one))


def test_ranks_share_what_one_of_them_fetched(store, tmp_path, monkeypatch):
    monkeypatch.setattr(FaultyFileSystem, "faults", ("stall",))
    monkeypatch.setattr(FaultyFileSystem, "rate", 1.0)
    monkeypatch.setattr(FaultyFileSystem, "stall", 0.05)
    cache = Cache(tmp_path / "cache", patience=QUICK)
    wanted = [tar(tmp_path, number) for number in range(6)]
    ranks = [PROCESSES.Process(target=_open_all, args=(cache, store, wanted)) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(patience(300))
    assert [rank.exitcode for rank in ranks] == [0] * 4
    assert asked(tmp_path) == {f"train-{i:06d}.tar": 1 for i in range(6)}
    assert not list((tmp_path / "cache").glob("*/.*"))


def test_a_killed_rank_leaves_no_lock_and_its_bytes(store, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PART", 1000)
    monkeypatch.setattr("shards.reading.cache.PART", 1000)
    monkeypatch.setattr(FaultyFileSystem, "faults", ("stall",))
    monkeypatch.setattr(FaultyFileSystem, "rate", 1.0)
    monkeypatch.setattr(FaultyFileSystem, "stall", 0.1)
    cache = Cache(tmp_path / "cache", patience=QUICK)
    rank = PROCESSES.Process(target=_open_all, args=(cache, store, [tar(tmp_path, 0)]))
    rank.start()
    arrived = (tmp_path / "cache").glob
    wait_for(
        lambda: any(path.stat().st_size >= 2000 for path in arrived("*/.*train-000000.tar")),
        "the first bytes",
    )
    os.kill(rank.pid, signal.SIGKILL)
    rank.join(patience(300))
    monkeypatch.setattr(FaultyFileSystem, "rate", 0.0)
    (arriving,) = (tmp_path / "cache").glob("*/.*train-000000.tar")
    with arriving.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it
    (tmp_path / "asked").unlink()
    folder = CacheFolder(cache, Fetcher(store, QUICK))
    with os.fdopen(folder.open(tar(tmp_path, 0)), "rb") as file:
        assert file.read() == (tmp_path / "store" / "train-000000.tar").read_bytes()
    first = (tmp_path / "asked").read_text().split()[1]
    assert int(first) >= 2000
