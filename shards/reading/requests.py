"""Requests to a store, many at a time: as many as help.

A window says how many requests that are not urgent may be under way. It grows while that brings
more bytes a second, and shrinks when it brings fewer, or when requests fail.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

# Requests under way: at the beginning, never less, never more. Urgent ones come beside them.
FIRST, LEAST, MOST = 8, 2, 64

# Seconds over which bytes are counted before the window changes.
INTERVAL = 0.5


@dataclass
class Window:
    """How many requests may be under way, by what they brought."""

    size: int = FIRST
    _rate: float = 0.0
    _grew: bool = True
    _begun: float = field(default_factory=time.monotonic)
    _bytes: int = 0

    def arrived(self, count: int, full: bool) -> None:
        """Take down that `count` bytes came; `full`: as many requests were under way as may be."""
        now = time.monotonic()
        self._bytes += count
        passed = now - self._begun
        if passed < INTERVAL:
            return
        rate, self._bytes, self._begun = self._bytes / passed, 0, now
        if full:
            self._change(rate)
        self._rate = rate

    def failed(self) -> None:
        """Take down that a request failed: the store may have too many."""
        self.size, self._grew, self._rate = max(self.size // 2, LEAST), False, 0.0

    def _change(self, rate: float) -> None:
        if rate > 1.05 * self._rate:
            better = self._grew
        elif rate < 0.95 * self._rate:
            better = not self._grew
        else:
            return  # as good with fewer: neither way is known to help
        self._grew = better
        size = self.size * 3 // 2 if better else self.size * 3 // 4
        self.size = min(max(size, LEAST), MOST)


class Requests:
    """Calls in threads of this process, the urgent ones before the others."""

    def __init__(self) -> None:
        self.window = Window()
        self._urgent: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._others: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._under_way = self._idle = self._threads = 0
        self._lock = threading.Condition()

    def urgent(self, call: Callable[[], T]) -> Future[T]:
        """Begin a call now, beside all others."""
        return self._add(self._urgent, call)

    def later(self, call: Callable[[], T]) -> Future[T]:
        """Begin a call when the window has room, in the order of asking."""
        return self._add(self._others, call)

    @property
    def waiting(self) -> int:
        """Calls for later that have not begun."""
        return len(self._others)

    def _add(
        self, queue: deque[tuple[Future[Any], Callable[[], Any]]], call: Callable[[], T]
    ) -> Future[T]:
        asked: Future[T] = Future()
        with self._lock:
            queue.append((asked, call))
            if self._idle < len(self._urgent) + len(self._others) and self._threads < 2 * MOST:
                self._threads += 1
                threading.Thread(target=self._run, daemon=True, name="shards").start()
            self._lock.notify()
        return asked

    def _run(self) -> None:
        while True:
            found = self._next()
            if found is None:
                return
            asked, call, urgent = found
            try:
                asked.set_result(call())
            except BaseException as error:  # handed to whoever asked
                asked.set_exception(error)
            if not urgent:
                with self._lock:
                    self._under_way -= 1
                    self._lock.notify()

    def _next(self) -> tuple[Future[Any], Callable[[], Any], bool] | None:
        """Wait for a call that may begin; None after a while without one."""
        with self._lock:
            while True:
                if self._urgent:
                    asked, call = self._urgent.popleft()
                    urgent = True
                elif self._others and self._under_way < self.window.size:
                    asked, call = self._others.popleft()
                    urgent = False
                else:
                    self._idle += 1
                    awake = self._lock.wait(5.0)
                    self._idle -= 1
                    if not awake and not self._urgent and not self._others:
                        self._threads -= 1
                        return None
                    continue
                if asked.set_running_or_notify_cancel():
                    self._under_way += not urgent
                    return asked, call, urgent


_OF_PROCESS: tuple[int, Requests] | None = None


def requests() -> Requests:
    """Return those of this process: threads do not survive a fork."""
    global _OF_PROCESS
    if _OF_PROCESS is None or _OF_PROCESS[0] != os.getpid():
        _OF_PROCESS = os.getpid(), Requests()
    return _OF_PROCESS[1]
