"""Pictures of a remote store by ranges of bytes: those needed now exactly, the rest in parts.

A file is cut into parts of 2 MiB, those of a small corpus into smaller ones. Those that will be
read soon are fetched ahead into the cache, where all processes of a machine find them. A picture
whose part is not there in time is asked for alone, beside all others that are missing. That costs
its bytes twice, so only some may be: at the beginning, when nothing is there yet, and a fortieth of
what comes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from shards.errors import ShardsRuntimeError
from shards.reading.cache import USUAL, CacheFolder, Wanted
from shards.reading.descriptors import HeldFiles
from shards.reading.fetch import Fetcher
from shards.reading.index import Sample
from shards.reading.requests import requests

PART = USUAL
# What one of `ranks` reads is cut into so many parts or more, and a corpus into so many at most, as
# far as they stay larger than the least: a node fetches whole parts, one more than its share.
PARTS_OF_SHARE, PARTS, LEAST_PART = 64, 512, 256 << 10

# Bytes that may be asked for alone at the beginning, and their largest share of the bytes that a
# process reads in an epoch. Of later bytes, half of that share may be.
ALONE, SHARE = 64 << 20, 20

# Parts that a process holds open, which nobody removes then: so many at most, and no more than one
# in so many of the bytes that the cache may have.
MOST_HELD, HELD = 192, 8

# Parts that a process remembers to be in the cache.
MOST_KNOWN = 1 << 16

# A part of a file: the file's name and the part's number.
Part = tuple[str, int]


@dataclass
class Traffic:
    """Counts of reading from a store, which can be added up over processes.

    Attributes:
        bytes: that came from the store.
        requests: that brought them.
        read: pictures that were read.
        hits: those of them that were there, or on their way, when they were needed.
        waited: seconds that reading waited for the store.
    """

    bytes: int = 0
    requests: int = 0
    read: int = 0
    hits: int = 0
    waited: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        names = [one.name for one in fields(self)]
        return Traffic(*(getattr(self, name) + getattr(other, name) for name in names))

    def __sub__(self, other: Traffic) -> Traffic:
        names = [one.name for one in fields(self)]
        return Traffic(*(getattr(self, name) - getattr(other, name) for name in names))


@dataclass
class _Coming:
    """A part that was asked for: at once, or for as long as it is expected."""

    urgent: bool
    expected: Callable[[], bool] | None
    asked: Future[None] = field(default_factory=Future)

    def is_expected(self) -> bool:
        """Whether it is to come though nobody waits for it yet."""
        return self.expected is not None and self.expected()


class Ranges:
    """Reads samples of remote files; all processes of a machine share the parts in the cache."""

    def __init__(self, fetcher: Fetcher, cache: CacheFolder | None) -> None:
        """Take the store's fetcher; without a cache, exactly the needed bytes are asked for.

        Facts about files must be put into `files`, by name, before the files are read.
        """
        self.fetcher, self.cache = fetcher, cache
        self.files: dict[str, Wanted] = {}
        self.at_first, self.part = ALONE, PART
        self.traffic = Traffic()
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        # What is under way or open stays with the process that asked for it.
        own = {"_asked", "_parts", "_lock", "_held", "_present"}
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._asked: dict[tuple[str, int], Future[bytes]] = {}
        self._parts: dict[Part, _Coming] = {}
        self._lock = threading.Lock()
        self._alone = self._missed = 0
        self._held = HeldFiles()
        # Parts that were in the cache when this process last looked. Others may have removed one
        # since: whoever opens it finds that out.
        self._present: set[Part] = set()

    def reads(self, share: float, total: int, ranks: int) -> None:
        """Take down which share of a corpus of `total` bytes this process, one of a rank, reads."""
        self.at_first = min(ALONE, int(share * total) // SHARE)
        self.part = part_size(total, ranks)
        if self.cache is not None:
            self._held.most = min(max(self.cache.cache.limit // HELD // self.part, 1), MOST_HELD)

    def begin(self, samples: Iterable[Sample]) -> None:
        """Ask for all of `samples` that are not here. Returns at once; `read` gives them."""
        for sample in samples:
            key = (sample.shard, sample.offset)
            if key in self._asked or self._here(sample):
                continue
            if self._may_come_alone(sample):
                self._alone += sample.size
                call = partial(self.exactly, sample)
                self._asked[key] = requests().urgent(call)
            else:
                for part in self._parts_of(sample.shard, sample.offset, sample.size):
                    self._fetch(part)

    def read(self, sample: Sample) -> bytes:
        """Return the bytes of a sample's picture, as the store has them or had them.

        Raises:
            ShardsRuntimeError: the store does not give them.
        """
        asked = self._asked.pop((sample.shard, sample.offset), None)
        self.traffic.read += 1
        if asked is not None:
            self.traffic.hits += asked.done()
            return self._waited(asked)
        if self.cache is None:
            return self.exactly(sample)
        begun, missed = time.monotonic(), self._missed
        parts = self._parts_of(sample.shard, sample.offset, sample.size)
        cut = [self._cut(part, sample) for part in parts]
        if self._missed == missed:
            self.traffic.hits += 1
        else:
            self.traffic.waited += time.monotonic() - begun
        return cut[0] if len(cut) == 1 else b"".join(cut)

    def exactly(self, sample: Sample) -> bytes:
        """Return the bytes of a sample's picture from the store itself. Raises as `read`."""
        try:
            data = self.fetcher.part(sample.shard, sample.offset, sample.offset + sample.size)
        except FileNotFoundError as error:
            raise ShardsRuntimeError(f"{self.fetcher.url}/{sample.shard} is missing") from error
        self._count(len(data))
        return data

    def drop(self, sample: Sample) -> None:
        """Remove the parts of a sample from the cache: their bytes are wrong."""
        if self.cache is not None:
            self._held.close()
            for part in self._parts_of(sample.shard, sample.offset, sample.size):
                self._present.discard(part)
                self.cache.drop(self._wanted(part))

    def expect(self, name: str, start: int, end: int, expected: Callable[[], bool]) -> None:
        """Fetch the parts of a file that hold these bytes, each if it is `expected` by then."""
        for part in self._parts_of(name, start, end - start):
            self._fetch(part, expected)

    def close(self) -> None:
        """Ask for no more, and close files."""
        self._held.close()
        most = self._held.most
        self._reset()
        self._held.most = most

    def _fetch(self, part: Part, expected: Callable[[], bool] | None = None) -> None:
        """Have a part fetched into the cache, unless it is on its way; None: at once."""
        urgent = expected is None
        with self._lock:
            known = self._parts.get(part)
            if known is not None and (not urgent or known.urgent or known.asked.running()):
                known.expected = expected or known.expected
                return
            ask = requests().urgent if urgent else requests().later
            coming = self._parts[part] = _Coming(urgent, expected)
            coming.asked = ask(partial(self._bring, part, coming))

    def _bring(self, part: Part, coming: _Coming) -> None:
        """Fetch a part, unless it is here, on its way, or no longer expected."""
        assert self.cache is not None
        wanted = self._wanted(part)
        try:
            if (coming.urgent or coming.is_expected()) and not self.cache.has(wanted):
                arrived = self._arrived if coming.urgent else self._filled
                os.close(self.cache.open(wanted, arrived))
                self._know(part)
        except Exception:  # whoever reads the part meets the error and reports it
            requests().failed()
        finally:
            with self._lock:
                if self._parts.get(part) is coming:
                    del self._parts[part]

    def _arrived(self, count: int, begun: float) -> None:
        self._count(count)

    def _filled(self, count: int, begun: float) -> None:
        """Count a part that the window made room for."""
        self._count(count)
        if count == self.part:
            requests().arrived(begun)

    def _count(self, count: int) -> None:
        with self._lock:
            self.traffic.bytes += count
            self.traffic.requests += 1

    def _waited(self, asked: Future[bytes]) -> bytes:
        begun = time.monotonic()
        try:
            return asked.result()
        finally:
            self.traffic.waited += time.monotonic() - begun

    def _cut(self, part: Part, sample: Sample) -> bytes:
        """Return the bytes of a sample that a part has."""
        assert self.cache is not None
        begin = part[1] * self.part
        first = max(sample.offset, begin)
        end = min(sample.offset + sample.size, begin + self.part)
        try:
            with self._held.using(part, partial(self._opened, part)) as descriptor:
                return os.pread(descriptor, max(end - first, 0), first - begin)
        except OSError as error:
            raise ShardsRuntimeError(
                f"the cache {self.cache.root} cannot be read: {error.strerror}"
            ) from error

    def _opened(self, part: Part) -> int:
        """Return a descriptor of a part, fetched when it is not in the cache."""
        assert self.cache is not None
        wanted = self._wanted(part)
        with contextlib.suppress(FileNotFoundError):
            return self.cache.open_present(wanted)
        self._present.discard(part)
        self._missed += 1
        return self.cache.open(wanted, self._arrived)

    def _here(self, sample: Sample) -> bool:
        """Whether all of a sample is in the cache, as far as this process knows."""
        if self.cache is None:
            return False
        parts = self._parts_of(sample.shard, sample.offset, sample.size)
        return all(part in self._present or self._look(part) for part in parts)

    def _look(self, part: Part) -> bool:
        assert self.cache is not None
        found = self.cache.path(self._wanted(part)).exists()
        if found:
            self._know(part)
        return found

    def _know(self, part: Part) -> None:
        if len(self._present) >= MOST_KNOWN:
            self._present.clear()
        self._present.add(part)

    def _may_come_alone(self, sample: Sample) -> bool:
        if self.cache is None:
            return True
        on_its_way = any(
            self._running(part) for part in self._parts_of(sample.shard, sample.offset, sample.size)
        )
        return not on_its_way and self._alone < self.at_first + self.traffic.bytes // (2 * SHARE)

    def _running(self, part: Part) -> bool:
        known = self._parts.get(part)
        return known is not None and known.asked.running()

    def _parts_of(self, name: str, start: int, size: int) -> list[Part]:
        last = min(start + max(size, 1), self.files[name].bytes) - 1
        return [(name, number) for number in range(start // self.part, last // self.part + 1)]

    def _wanted(self, part: Part) -> Wanted:
        return self.files[part[0]].cut(part[1], self.part)


def part_size(total: int, ranks: int) -> int:
    """Return the bytes of a part of a corpus of `total` bytes, which so many ranks share.

    It is a power of two, 2 MiB at most.
    """
    parts = min(PARTS_OF_SHARE * ranks, PARTS)
    smaller = 1 << max(total // parts, 1).bit_length() - 1
    return min(max(smaller, LEAST_PART), PART)
