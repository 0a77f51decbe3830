"""Measures the speed of training: samples a second, time spent waiting for data, memory."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from shards.reading.ranges import Traffic

# Weight of the newest step in the moving averages.
NEWEST = 0.05


class Meter:
    """Moving averages over the steps of a run; `batch` is the global batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.seconds = 0.0
        self.waited = 0.0
        self._wait = 0.0
        self._last = time.monotonic()
        self._steps = 0
        self._traffic = Traffic()
        # Traffic from a store to this process in a step, and the share that was there in time.
        self.store = dict.fromkeys(("bytes", "requests", "read", "hits"), 0.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.monotonic()
        yield
        self._wait = time.monotonic() - start

    def read(self, traffic: Traffic) -> None:
        """Record the traffic of reading a batch from a store in this process."""
        self._traffic = traffic

    def step(self, batch: int | None = None) -> None:
        """Note that a step of a global `batch` has ended; without one, of that given first."""
        self.batch = batch or self.batch
        now = time.monotonic()
        self._steps += 1
        weight = max(NEWEST, 1 / self._steps)
        newest = (self._traffic.bytes, self._traffic.requests, self._traffic.read)
        hits = self._traffic.hits
        for name, value in zip(self.store, (*newest, hits), strict=True):
            self.store[name] += weight * (value - self.store[name])
        self.seconds += weight * (now - self._last - self.seconds)
        self.waited += weight * (self._wait - self.waited)
        self._last = now

    @property
    def samples_per_second(self) -> float:
        """Pictures a second, over all processes."""
        return self.batch / self.seconds if self.seconds else 0.0

    @property
    def waiting_share(self) -> float:
        """The share of the time that goes into waiting for data."""
        return self.waited / self.seconds if self.seconds else 0.0

    def note(self, found: Mapping[str, float]) -> str:
        """Return the note that progress shows beside the step and the time left."""
        store = self._from_store()
        reading = f" {store['store_mb_per_second']:.1f} MB/s from the store," if store else ""
        return (
            f"loss {found['loss']:.4g}, {found['bpp']:.3f} bpp, {psnr(found['mse']):.2f} dB,"
            f" {self.samples_per_second:.1f} samples/s, {self.waiting_share:.0%} waiting,{reading}"
            f" {memory() / 2**30:.1f} GiB"
        )

    def metrics(self) -> dict[str, float]:
        """Return the metrics of speed that are tracked."""
        return {
            "samples_per_second": self.samples_per_second,
            "waiting_share": self.waiting_share,
            "memory_gib": memory() / 2**30,
            **self._from_store(),
        }

    def _from_store(self) -> dict[str, float]:
        """Return metrics of reading from a store; none where all shards are on this machine."""
        if not self.store["read"] or not self.seconds:
            return {}
        return {
            "store_mb_per_second": self.store["bytes"] / self.seconds / 1e6,
            "store_requests_per_second": self.store["requests"] / self.seconds,
            "store_hit_share": self.store["hits"] / self.store["read"],
        }


def psnr(mse: float) -> float:
    """Return the PSNR in dB of a mean squared error on [0, 1] values, at most 100."""
    return min(100.0, -10 * math.log10(mse)) if mse > 0 else 100.0


def memory() -> int:
    """Return the most bytes used so far: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
