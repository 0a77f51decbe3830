"""Remote shards whose pictures have checksums: read by ranges, in parts, or into memory."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import defaultdict
from functools import partial
from itertools import islice
from pathlib import Path

import fsspec
import pytest

from shards import Cache, ShardsRuntimeError, Stream, stream
from shards.reading import ranges
from shards.reading.fetch import Patience
from shards.reading.requests import Requests
from tests.shards.made import numbered, write_split
from tests.shards.test_reading_cache import QUICK, FaultyFileSystem, keys_of, taken

PROCESSES = multiprocessing.get_context("fork")
SAMPLES, SHARDS = 240, 6


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A split of 6 shards of 40 samples behind a store without faults, and its URL."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    for name, value in (("faults", ()), ("rate", 0.0), ("stall", 1.0), ("log", tmp_path / "asked")):
        monkeypatch.setattr(FaultyFileSystem, name, value)
    monkeypatch.setattr(FaultyFileSystem, "dice", random.Random(0))
    monkeypatch.setattr(ranges, "PART", 20_000)
    write_split(tmp_path / "store", [40] * SHARDS, numbered(SAMPLES), checksums=True)
    return f"faulty://{tmp_path}/store"


def local_keys(tmp_path: Path, **options: int) -> list[str]:
    return keys_of(Stream(tmp_path / "store", crop=8, epochs=1, **options))  # type: ignore[arg-type]


def fetched(tmp_path: Path) -> dict[str, list[tuple[int, int]]]:
    """The ranges of tars that were asked for."""
    asked = defaultdict(list)
    for line in (tmp_path / "asked").read_text().splitlines():
        name, start, end = line.split()
        if name.endswith(".tar"):
            asked[name].append((int(start), int(end)))
    return asked


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_a_remote_epoch_is_the_local_one(store, tmp_path, where, workers):
    cache = Cache(tmp_path / "cache" if where == "disk" else None, patience=QUICK)
    local = list(stream(tmp_path / "store", batch_size=6, crop=8, block=2))
    remote = Stream(store, batch_size=6, crop=8, block=2, cache=cache, workers=workers, epochs=1)
    for near, far in zip(local, remote, strict=True):
        assert near.keys == far.keys
        assert near.images.equal(far.images)
    assert remote.traffic.read == SAMPLES
    assert remote.traffic.bytes > 0
    assert (tmp_path / "cache").exists() == (where == "disk")


def test_a_second_epoch_from_the_cache_asks_for_no_shard(store, tmp_path):
    cache = Cache(tmp_path / "cache", patience=QUICK)
    first = Stream(store, batch_size=6, crop=8, cache=cache, epochs=1)
    assert len(keys_of(first)) == SAMPLES
    time.sleep(0.2)  # what was expected last may still be on its way
    (tmp_path / "asked").unlink()
    again = Stream(store, batch_size=6, crop=8, cache=cache, epochs=2)
    assert len(keys_of(again)) == 2 * SAMPLES
    # A part that nobody needed in the first epoch's end may come; hardly any is left.
    assert sum(map(len, fetched(tmp_path).values())) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "memory"])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_whatever_the_store_does(store, tmp_path, monkeypatch, workers, where):
    wanted = local_keys(tmp_path, batch_size=6, block=2)
    monkeypatch.setattr(FaultyFileSystem, "faults", ("fail", "fail", "stall", "truncate", "damage"))
    monkeypatch.setattr(FaultyFileSystem, "rate", 0.2)
    cache = Cache(tmp_path / "cache" if where == "disk" else None, patience=QUICK)
    opened = Stream(store, batch_size=6, crop=8, block=2, epochs=2, cache=cache, workers=workers)
    got = keys_of(opened)
    assert got[:SAMPLES] == wanted
    assert sorted(got[SAMPLES:]) == sorted(wanted)
    assert not opened.broken


def test_a_store_that_stays_silent_ends_the_run_with_one_sentence(store, tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache", patience=Patience(3, 0.001, 0.01, stall=0.05))
    opened = stream(store, batch_size=6, crop=8, cache=cache)
    monkeypatch.setattr(FaultyFileSystem, "faults", ("stall",))
    monkeypatch.setattr(FaultyFileSystem, "rate", 1.0)
    with pytest.raises(ShardsRuntimeError, match=r"could not be read in 3 tries: no answer within"):
        next(opened)


def test_a_picture_that_is_not_what_its_checksum_says_is_refused(store, tmp_path):
    path = tmp_path / "store" / "train-000003.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    for folder in (tmp_path / "cache", None):
        cache = Cache(folder, patience=QUICK)
        with pytest.raises(ShardsRuntimeError, match=r"000003\.tar does not have the checksum"):
            list(stream(store, batch_size=6, crop=8, cache=cache))


def test_what_rots_in_the_cache_is_fetched_anew(store, tmp_path):
    cache = Cache(tmp_path / "cache", patience=QUICK)
    wanted = keys_of(stream(store, batch_size=6, crop=8, cache=cache))
    for path in (tmp_path / "cache").glob("*/*@*"):
        path.write_bytes(bytes(path.stat().st_size))
    for path in (tmp_path / "cache").glob("*/*.table"):
        path.write_bytes(b"no table")
    rotten = Stream(store, batch_size=6, crop=8, cache=cache, epochs=1)
    assert keys_of(rotten) == wanted
    assert not rotten.broken


def test_each_of_two_nodes_fetches_its_half(tmp_path, store):
    world = 2
    total = sum(path.stat().st_size for path in (tmp_path / "store").glob("*.tar"))
    seen = []
    for rank in range(world):
        (tmp_path / "asked").unlink(missing_ok=True)
        own = Stream(
            store,
            batch_size=4,
            crop=8,
            block=1,
            rank=rank,
            world_size=world,
            epochs=1,
            cache=Cache(tmp_path / f"cache-{rank}", patience=QUICK),
        )
        seen += keys_of(own)
        # Pictures that came alone at the beginning and their parts overlap: each byte counts once.
        node = sum(len(bytes_of(asked)) for asked in fetched(tmp_path).values())
        assert node <= 1.25 * total / world  # parts of 20 kB of shards of 180 kB
    assert len(set(seen)) == len(seen) == SAMPLES


def bytes_of(asked: list[tuple[int, int]]) -> set[int]:
    return {byte for start, end in asked for byte in range(start, end)}


def test_the_limit_is_kept_though_the_corpus_is_larger(store, tmp_path):
    sizes = sorted(path.stat().st_size for path in (tmp_path / "store").glob("*.tar"))
    limit = sum(sizes[-2:]) + 60_000
    cache = Cache(tmp_path / "cache", limit=limit, patience=QUICK)
    wanted = local_keys(tmp_path, batch_size=6, block=1)
    got = []
    for batch in stream(store, batch_size=6, crop=8, block=1, cache=cache):
        got += batch.keys
        assert taken(tmp_path / "cache") <= limit
    assert got == wanted


def test_the_first_batch_asks_for_its_pictures_and_no_more(store, tmp_path, monkeypatch):
    monkeypatch.setattr(Requests, "later", lambda self, call: None)  # nothing comes behind
    opened = stream(store, batch_size=6, crop=8, cache=Cache(tmp_path / "cache", patience=QUICK))
    batch = next(opened)
    asked = [one for ranges in fetched(tmp_path).values() for one in ranges]
    pictures = sum(path.stat().st_size for path in (tmp_path / "store").glob("*.tar")) / SAMPLES
    assert len(asked) == len(batch.keys)
    assert sum(end - start for start, end in asked) <= 6 * pictures


def test_a_cache_keeps_parts_of_several_sizes_apart(store, tmp_path, monkeypatch):
    wanted = local_keys(tmp_path, batch_size=6)
    monkeypatch.setattr(ranges, "ALONE", 0)
    for size in (20_000, 7_000):
        monkeypatch.setattr(ranges, "PART", size)
        cache = Cache(tmp_path / "cache", patience=QUICK)
        assert keys_of(stream(store, batch_size=6, crop=8, cache=cache)) == wanted
    names = {path.name.rpartition("x")[2] for path in (tmp_path / "cache").glob("*/*@*")}
    assert names == {"20000", "7000"}


def test_parts_of_small_corpora_are_small():
    totals = (0, 97 << 20, 325 << 20, 1 << 30, 1 << 40)
    sizes = {n: [ranges.part_size(total, n) >> 10 for total in totals] for n in (1, 2, 8, 1000)}
    assert sizes[1] == [256, 1024, 2048, 2048, 2048]
    assert sizes[2] == [256, 512, 2048, 2048, 2048]
    assert sizes[8] == sizes[1000] == [256, 256, 512, 2048, 2048]


def _read_for_ever(url: str, cache: Cache) -> None:
    for _ in Stream(url, batch_size=6, crop=8, cache=cache, workers=1):
        pass


def test_a_killed_process_leaves_a_cache_that_others_go_on_with(store, tmp_path, monkeypatch):
    monkeypatch.setattr(FaultyFileSystem, "faults", ("stall",))
    monkeypatch.setattr(FaultyFileSystem, "rate", 0.5)
    monkeypatch.setattr(FaultyFileSystem, "stall", 0.05)
    cache = Cache(tmp_path / "cache", patience=QUICK)
    process = PROCESSES.Process(target=_read_for_ever, args=(store, cache))
    process.start()
    while not list((tmp_path / "cache").glob("*/*@*")):
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert keys_of(stream(store, batch_size=6, crop=8, cache=cache)) == local_keys(
        tmp_path, batch_size=6
    )


def test_resuming_through_a_cache_is_exact(store, tmp_path):
    wanted = local_keys(tmp_path, batch_size=8)
    resumed = Stream(store, batch_size=4, crop=8, cache=Cache(tmp_path / "cache", patience=QUICK))
    resumed.load_state_dict({"epoch": 0, "samples_seen": 216, "order": 2})
    assert keys_of(islice(resumed, 6)) == wanted[216:]
    resumed.close()


def test_requests_are_done_urgent_ones_first():
    asked = Requests()
    done: list[int] = []

    def slowly(number: int) -> None:
        time.sleep(0.01)
        done.append(number)

    for number in range(20):
        asked.later(partial(slowly, number))
    asked.urgent(lambda: done.append(99)).result(timeout=20)
    assert 99 in done[:19]
    failing = asked.urgent(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(timeout=20)
