"""Being asked to stop: SIGTERM and SIGUSR1 let the step end, then a checkpoint is written."""

from __future__ import annotations

import signal
from types import FrameType

# Exit code of a run that was asked to stop and has kept its state: start it again (EX_TEMPFAIL).
AGAIN = 75


class StopRequest:
    """Whether this process has been asked to stop, by which signal."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def listen(self) -> None:
        """Take SIGTERM and SIGUSR1 from now on."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._take)
        # A launcher that ignores Ctrl-C hands that down to what it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def ignore(self) -> None:
        """Let further signals pass: one that comes while Python shuts down would kill."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal is not None
