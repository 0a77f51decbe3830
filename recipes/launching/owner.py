"""The two ends of a launch: the command that owns it, and the launcher that it starts.

The owner passes signals on. The launcher keeps its standard input open to the owner, so that it
learns of the owner's end, however that came. In both cases the training processes are asked to
stop, and keep their state: none trains on alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any

from pipeline.common.errors import FAILURE, INTERRUPTED

# Seconds after which a signal is sent again: a process that is still starting ignores it.
SECONDS_BETWEEN_SIGNALS = 2.0
# Seconds between a job's launcher's looks for the script that started it.
SECONDS_BETWEEN_LOOKS = 1.0
# Exit code of a training that was asked to stop: start it again (EX_TEMPFAIL).
AGAIN = 75
# How often in a row a launcher that is asked to stop is seen without processes: the first time they
# may just have ended, and their exit code is to come.
IDLE_LOOKS = 2
# Seconds for processes without an owner to save their state.
SECONDS_TO_END = 600.0
STOP = signal.SIGUSR1
NOTHING = b"train: stopped as asked, before anything was started\n"


class _Asked:
    """The signals that the owner has received so far."""

    def __init__(self) -> None:
        self.to_stop = False
        self.ctrl_c = 0

    def take(self, number: int, frame: FrameType | None) -> None:
        """Record a signal."""
        self.to_stop = True
        if number == signal.SIGINT:
            self.ctrl_c += 1
            if self.ctrl_c == 1:
                os.write(2, b"train: keeps its state and ends; Ctrl-C again ends it without\n")

    @property
    def next(self) -> signal.Signals:
        """The signal to send: a second Ctrl-C ends training without saving, a third kills it."""
        if self.ctrl_c < 2:
            return STOP
        return signal.SIGINT if self.ctrl_c == 2 else signal.SIGKILL


@contextmanager
def nothing_started() -> Iterator[None]:
    """Let a signal to stop end this process at once inside the block, with its exit code."""
    stops = [number for number in heeded() if number != signal.SIGINT]
    before = {number: signal.signal(number, _end_before) for number in stops}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_before(number: int, frame: FrameType | None) -> None:
    os.write(2, NOTHING)
    os._exit(AGAIN)


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the launcher `command`, pass signals on to what it starts, return its exit code.

    SIGTERM, SIGUSR1, SIGHUP (unless ignored, as under `nohup`) and Ctrl-C make training keep its
    state and end; after Ctrl-C the code is 130. A launcher that dies of a signal has failed.
    """
    asked = _Asked()
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, start_new_session=True
    )
    before = {number: signal.signal(number, asked.take) for number in heeded()}
    try:
        code = _wait(process, asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked.ctrl_c:
        return INTERRUPTED
    if code < 0:
        sys.stderr.write(f"train: {died('the launcher', -code)}\n")
        return FAILURE
    return code


def died(who: str, number: int) -> str:
    """Return the sentence for a process that died of the signal `number`."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # one of the real-time signals, which have no names
        name = f"signal {number}"
    memory = ", perhaps for want of memory" if number == signal.SIGKILL else ""
    return f"{who} died of {name}{memory}; start again to go on"


def heeded() -> list[signal.Signals]:
    """Return the signals that ask a training to stop: SIGHUP is none where it is ignored."""
    numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def _wait(process: subprocess.Popen[bytes], asked: _Asked) -> int:
    idle = 0
    while True:
        try:
            return process.wait(SECONDS_BETWEEN_SIGNALS if asked.to_stop else 0.5)
        except subprocess.TimeoutExpired:
            if not asked.to_stop:
                continue
            idle = 0 if send(process.pid, asked.next) else idle + 1
            if idle == IDLE_LOOKS:
                # It still loads its libraries: there is no state to keep.
                code = _end_launcher(process)
                if code < 0:
                    os.write(2, NOTHING)
                return AGAIN if code < 0 else code


def _end_launcher(process: subprocess.Popen[bytes]) -> int:
    """End a launcher that has started nothing, also a stopped one; return its exit code."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(SECONDS_BETWEEN_SIGNALS)
    process.kill()
    return process.wait()


def send(launcher: int, number: signal.Signals) -> bool:
    """Send `number` to the processes that train, which the process `launcher` has started.

    Their own children, which load pictures, end with them. Return whether there are any.
    """
    psutil: Any = import_module("psutil")
    found = False
    with suppress(psutil.Error):
        for child in psutil.Process(launcher).children():
            found = True
            child.send_signal(number)
    return found


def end_with_owner() -> None:
    """In the launcher: watch for the owner's end, and then let the training processes end."""
    threading.Thread(target=_watch, name="owner", daemon=True).start()


def end_with_parent() -> None:
    """In a job's launcher: let the training processes end when the job's script is gone."""
    threading.Thread(target=_watch_parent, args=(os.getppid(),), name="owner", daemon=True).start()


def _watch() -> None:
    try:
        while os.read(sys.stdin.fileno(), 1):
            pass
    except (OSError, ValueError):
        return
    _end()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    _end()


def _end() -> None:
    """Let the training processes end; without any, end at once."""
    end = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < end:
        if not send(os.getpid(), STOP):
            # One that is being started at this moment sees that its launcher is gone.
            os._exit(FAILURE)
        time.sleep(SECONDS_BETWEEN_SIGNALS)
    send(os.getpid(), signal.SIGKILL)
