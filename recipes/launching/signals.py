"""Handles signals to stop: the step ends and a checkpoint is written, or a wait is given up."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.common.errors import INTERRUPTED
from recipes.launching.owner import AGAIN, heeded


class StopNow(BaseException):
    """A wait was given up, because this process was asked to stop. No library may catch it."""


class StopRequest:
    """Whether this process has been asked to stop, by which signal.

    SIGTERM, SIGUSR1, SIGHUP (unless it is ignored, as under `nohup`) and Ctrl-C ask. A second
    Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._process = os.getpid()
        self._waits = 0
        self._raised = False
        self._heeded: list[signal.Signals] = []

    def listen(self) -> None:
        """Take the signals from now on."""
        # A launcher that ignores Ctrl-C hands that down to what it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._heeded = heeded()
        for number in self._heeded:
            signal.signal(number, self._take)

    def ignore(self) -> None:
        """Let further signals pass: one that comes while Python shuts down would kill."""
        for number in self._heeded:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `StopNow` when a signal comes in here, or has come before: for waits.

        A library that is interrupted so, in an import say, may raise another error, or none.
        """
        self._waits += 1
        try:
            if self:
                raise StopNow
            yield
            if self._raised:
                raise StopNow
        except Exception as error:
            if self._raised:
                raise StopNow from error
            raise
        finally:
            self._waits -= 1
            self._raised = self._raised and self._waits > 0

    def _take(self, number: int, frame: FrameType | None) -> None:
        # A process that this one has forked has its handlers.
        if os.getpid() != self._process:
            return
        if number == signal.SIGINT and self.signal == "SIGINT":
            raise KeyboardInterrupt
        if self.signal is None or number == signal.SIGINT:
            self.signal = signal.Signals(number).name
        if self._waits:
            self._raised = True
            raise StopNow

    @property
    def code(self) -> int:
        """The exit code that says so."""
        return INTERRUPTED if self.signal == "SIGINT" else AGAIN

    def __bool__(self) -> bool:
        return self.signal is not None
