"""Finds how many requests to a store should be under way: as many as help.

By Little's law, n requests under way that take t seconds each bring n / t parts a second. A window
tries another n, compares, and keeps what is better: larger while a store gives more to more
requests, smaller where it gives as much to fewer. Times of requests say this with far less noise
than bytes counted over an interval, into which now more and now fewer requests fall.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

# Requests under way: at the beginning, never fewer, never more.
FIRST, LEAST, MOST = 8, 2, 64

# The first factor by which the window grows; its square root is tried where that does not help.
FACTOR = 2.0
# Below this factor the window is as good as it gets for now.
SMALLEST_FACTOR = 1.15
# A larger window is kept if parts a second grow by at least this share of its growth.
GAIN = 0.3
# The share of the rate that a smaller window may lose and still be kept.
LOSS = 0.05
# Rounds that a window stays as it is before another is tried.
REST = 8
# Requests that say how quick a window is: at least so many, and half of the window.
ROUND = 8


@dataclass
class Window:
    """The number of requests that may be under way, found from the times of earlier ones.

    All must ask for equally many bytes.
    """

    size: int = FIRST
    _factor: float = FACTOR
    _before: tuple[int, float] | None = None  # the last size, and its parts a second
    _rest: int = 0
    _smaller: bool = False  # whether a smaller size is tried next
    _since: float = field(default_factory=time.monotonic)
    _times: list[float] = field(default_factory=list)

    def arrived(self, begun: float, ended: float, full: bool) -> None:
        """Record when a request began and ended, by `time.monotonic`.

        `full`: as many requests were under way as may be; others say nothing of the window.
        """
        if not full:
            self._again(ended)
        elif begun >= self._since:  # begun earlier, it was under way with another number
            self._times.append(ended - begun)
            if len(self._times) >= max(self.size // 2, ROUND):
                self._end_round(ended)

    def failed(self, now: float) -> None:
        """Record that a request failed for good: the store may have too many."""
        self._before, self._rest, self._factor = None, REST, FACTOR
        self._try(max(self.size // 2, LEAST), now)

    def _end_round(self, now: float) -> None:
        # One that had to be made again took many times as long.
        times = sorted(self._times)[:-1]
        rate = self.size * len(times) / max(sum(times), 1e-9)
        if self._rest:
            self._rest -= 1
            self._again(now)
            return
        if self._before is not None and not self._better(*self._before, rate):
            size, rate = self._before
            self._factor = math.sqrt(self._factor)
        else:
            size = self.size
        self._next(size, rate, now)

    def _better(self, size: int, before: float, rate: float) -> bool:
        """Whether the present size is better than another, whose rate was `before`."""
        if self.size < size:
            return rate > before * (1 - LOSS)
        return rate > before * (1 + GAIN * (self.size / size - 1))

    def _next(self, size: int, rate: float, now: float) -> None:
        """Try another size than `size`, the best one so far; or stay with it for a while."""
        tried = size
        if self._factor >= SMALLEST_FACTOR:
            exact = size / self._factor if self._smaller else size * self._factor
            tried = min(max(math.floor(exact) if self._smaller else math.ceil(exact), LEAST), MOST)
        if tried == size:  # nothing is left to try: the other direction is next
            self._before, self._rest, self._smaller = None, REST, not self._smaller
            self._factor = FACTOR**0.5
        else:
            self._before = size, rate
        self._try(tried, now)

    def _try(self, size: int, now: float) -> None:
        self.size = size
        self._again(now)

    def _again(self, now: float) -> None:
        """Begin a round anew."""
        self._since = now
        self._times.clear()
