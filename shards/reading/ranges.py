"""Pictures of a remote store by ranges of bytes: those needed now exactly, the rest in parts.

A file is cut into parts of 2 MiB, those of a small corpus into smaller ones. Those that will be
read soon are fetched ahead into the cache, where all processes of a machine find them. A picture
whose part is not there in time is asked for alone, beside all others that are missing. That costs
its bytes twice, so only some may be: at the beginning, when nothing is there yet, and a fortieth of
what comes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from shards.errors import ShardsRuntimeError
from shards.reading.cache import USUAL, CacheFolder, Wanted
from shards.reading.fetch import Fetcher
from shards.reading.index import Sample
from shards.reading.requests import requests

PART = USUAL
# A corpus is cut into so many parts or more, as far as they stay larger than the least: a node
# among many fetches whole parts of its share.
PARTS, LEAST_PART = 512, 256 << 10

# Bytes that may be asked for alone at the beginning, and which share of what a process reads in an
# epoch they are at most. Of what comes later it is half of that.
ALONE, SHARE = 64 << 20, 20


@dataclass
class Traffic:
    """What reading from a store took; sums of several processes mean the same.

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


class Ranges:
    """Reads samples of remote files; all processes of a machine share the parts in the cache."""

    def __init__(self, fetcher: Fetcher, cache: CacheFolder | None) -> None:
        """Take what asks the store; without a cache, all is asked for exactly.

        What is known of the files goes into `files`, by name, before they are read.
        """
        self.fetcher, self.cache = fetcher, cache
        self.files: dict[str, Wanted] = {}
        self.at_first, self.part = ALONE, PART
        self.traffic = Traffic()
        self._reset()

    def __getstate__(self) -> dict[str, Any]:
        # What is under way stays with the process that asked for it.
        own = {"_asked", "_parts", "_lock"}
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._asked: dict[tuple[str, int], Future[bytes]] = {}
        self._parts: dict[Wanted, Future[None]] = {}
        self._lock = threading.Lock()
        self._alone = 0
        self._generation = 0

    def reads(self, share: float, total: int) -> None:
        """Take down which share of a corpus of `total` bytes this process reads in an epoch."""
        self.at_first = min(ALONE, int(share * total) // SHARE)
        self.part = part_size(total)

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
                    self._fetch(part, urgent=True)

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
        here = self._here(sample)
        self.traffic.hits += here
        begun = time.monotonic()
        data = b"".join(
            self._cut(part, sample)
            for part in self._parts_of(sample.shard, sample.offset, sample.size)
        )
        if not here:
            self.traffic.waited += time.monotonic() - begun
        return data

    def exactly(self, sample: Sample) -> bytes:
        """Return the bytes of a sample's picture from the store itself. Raises as `read`."""
        try:
            data = self.fetcher.part(sample.shard, sample.offset, sample.offset + sample.size)
        except FileNotFoundError as error:
            raise ShardsRuntimeError(f"{self.fetcher.url}/{sample.shard} is missing") from error
        self._count(len(data))
        return data

    def drop(self, sample: Sample) -> None:
        """Remove from the cache what a sample was read from: it is not what it must be."""
        if self.cache is not None:
            for part in self._parts_of(sample.shard, sample.offset, sample.size):
                self.cache.drop(part)

    def expect(self, name: str, start: int, end: int, generation: int) -> None:
        """Fetch the parts of a file that hold these bytes, unless others are expected by now."""
        for part in self._parts_of(name, start, end - start):
            if generation == self._generation:
                self._fetch(part, urgent=False)

    def anew(self) -> int:
        """Let go of what was expected and has not begun; return what new expectations must say."""
        with self._lock:
            self._generation += 1
            self._parts = {part: asked for part, asked in self._parts.items() if asked.running()}
        return self._generation

    def close(self) -> None:
        """Ask for no more."""
        generation = self.anew()
        self._reset()
        self._generation = generation

    def _fetch(self, part: Wanted, urgent: bool) -> None:
        """Have a part fetched into the cache, unless it is here or on its way."""
        assert self.cache is not None
        with self._lock:
            known = self._parts.get(part)
            if known is not None and (not urgent or known.running() or known.done()):
                return
            ask = requests().urgent if urgent else requests().later
            self._parts[part] = ask(
                partial(self._bring, part, None if urgent else self._generation)
            )

    def _bring(self, part: Wanted, generation: int | None) -> None:
        """Fetch a part, unless it is here, on its way, or no longer expected."""
        assert self.cache is not None
        if generation not in (None, self._generation) or self.cache.has(part):
            return
        try:
            os.close(self.cache.open(part, self._arrived if generation is None else self._filled))
        except Exception:  # whoever reads the part meets the error and reports it
            requests().failed()

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

    def _cut(self, part: Wanted, sample: Sample) -> bytes:
        """Return what a part has of a sample."""
        assert self.cache is not None
        first = max(sample.offset, part.start)
        end = min(sample.offset + sample.size, part.start + part.bytes)
        descriptor = self.cache.open(part, self._arrived)
        try:
            return os.pread(descriptor, max(end - first, 0), first - part.start)
        except OSError as error:
            raise ShardsRuntimeError(
                f"the cache {self.cache.root} cannot be read: {error.strerror}"
            ) from error
        finally:
            os.close(descriptor)

    def _here(self, sample: Sample) -> bool:
        """Whether all of a sample is in the cache."""
        if self.cache is None:
            return False
        parts = self._parts_of(sample.shard, sample.offset, sample.size)
        return all(self.cache.path(part).exists() for part in parts)

    def _may_come_alone(self, sample: Sample) -> bool:
        if self.cache is None:
            return True
        on_its_way = any(
            self._running(part) for part in self._parts_of(sample.shard, sample.offset, sample.size)
        )
        return not on_its_way and self._alone < self.at_first + self.traffic.bytes // (2 * SHARE)

    def _running(self, part: Wanted) -> bool:
        known = self._parts.get(part)
        return known is not None and known.running()

    def _parts_of(self, name: str, start: int, size: int) -> Sequence[Wanted]:
        whole = self.files[name]
        last = min(start + max(size, 1), whole.bytes) - 1
        numbers = range(start // self.part, last // self.part + 1)
        return [whole.cut(number, self.part) for number in numbers]


def part_size(total: int) -> int:
    """Return the bytes of a part of a corpus of `total` bytes: a power of two, 2 MiB at most."""
    smaller = 1 << max(total // PARTS, 1).bit_length() - 1
    return min(max(smaller, LEAST_PART), PART)
