"""Makes many requests to a store at once; a window limits those that are not urgent."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from shards.reading.window import MOST, Window

T = TypeVar("T")


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
    def busy(self) -> bool:
        """Whether calls for later wait or are under way."""
        with self._lock:
            return bool(self._others or self._under_way)

    def arrived(self, begun: float) -> None:
        """Record that a part of the usual size came, and when it was asked for."""
        with self._lock:
            self.window.arrived(begun, time.monotonic(), full=len(self._others) > 0)
            if self._under_way < self.window.size:
                self._lock.notify_all()

    def failed(self) -> None:
        """Record that a call for later failed for good."""
        with self._lock:
            self.window.failed(time.monotonic())

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
