"""Measures where the time of augmenting goes, so that users see which stage limits it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Spent:
    """Seconds, of all workers and devices together.

    Attributes:
        decoding: workers read and decoded pictures.
        operating: workers ran the operations themselves.
        encoding: workers encoded results.
        waiting: workers waited for a device.
        working: devices worked.
        queueing: batches lay before a device, which worked on others.
    """

    decoding: float = 0.0
    operating: float = 0.0
    encoding: float = 0.0
    waiting: float = 0.0
    working: float = 0.0
    queueing: float = 0.0

    def __add__(self, more: Spent) -> Spent:
        """Return both together."""
        return Spent(*(getattr(self, one.name) + getattr(more, one.name) for one in fields(self)))

    def words(self, seconds: float, devices: int) -> list[str]:
        """Return in words how workers and `devices` devices spent `seconds`."""
        last = ("waiting for a device", self.waiting) if devices else ("operations", self.operating)
        stages = [("decoding", self.decoding), last, ("encoding", self.encoding)]
        total = sum(spent for _, spent in stages)
        if not total:
            return []
        words = [f"workers: {', '.join(f'{name} {spent / total:.0%}' for name, spent in stages)}"]
        if devices:
            busy = min(self.working / (seconds * devices), 1)
            words.append(
                f"devices: busy {busy:.0%}, {self.queueing / seconds:.1f} batches in their queue"
            )
        return words


class Clock:
    """Adds up what stages take, in several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent = Spent()

    @contextmanager
    def times(self, stage: str) -> Iterator[None]:
        """Count the time of the block for a stage, a field of `Spent`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(Spent(**{stage: time.monotonic() - start}))

    def add(self, more: Spent) -> None:
        """Count more."""
        with self._lock:
            self._spent += more

    def taken(self) -> Spent:
        """Return what was counted since the last time."""
        with self._lock:
            spent, self._spent = self._spent, Spent()
        return spent
