"""Worker processes that a kill cannot leave waiting.

Each has a pipe of its own and none shares a lock, so at whatever instant one dies, its pipe ends
and nothing else does. (A `ProcessPoolExecutor` of Python 3.11 waits for ever when a worker is
killed while another one starts.) A worker is an interpreter that imports what its tasks need: not,
as with `multiprocessing`, the main module again, which takes the longer part of its start.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, Pipe, wait
from types import FrameType
from typing import Any, Generic, TypeVar

from pipeline.common.errors import RunError

T = TypeVar("T")
R = TypeVar("R")
Tell = Callable[[Any], None]
# Called in a worker process: returns the function that does its tasks, and may send notes.
Start = Callable[[Tell], Callable[[T], R]]

SECONDS_TO_LEAVE = 10.0
PIPE_ENDED = (EOFError, OSError)  # OSError: also in the middle of a message
PROGRAM = "from pipeline.common.workers import serve; serve({})"
_NOTE, _RESULT, _ERROR = "note", "result", "error"


def work_in_processes(
    start: Start[T, R],
    tasks: Iterable[T],
    processes: int,
    on_note: Tell = lambda note: None,
) -> Iterator[tuple[T, R]]:
    """Yield each task with its result, in the order in which they are done.

    When the caller leaves early, or on an error, workers are ended in the middle of their tasks.

    Args:
        start: called once in each worker process; picklable, like tasks and results.
        tasks: taken one by one, as workers come free.
        processes: how many workers.
        on_note: called in this process with each note that a worker sends.

    Raises:
        RunError: a worker died.
        Exception: whatever a task raised, the first of them.
    """
    members: list[_Member[T, R]] = []
    try:
        with _ctrl_c_is_ours():
            for _ in range(processes):
                members.append(_Member())
        yield from _handed_out(start, tasks, members, on_note)
    finally:
        _dismiss(members)


class _Member(Generic[T, R]):
    """A worker as its parent sees it: the process, its pipe, and what it is doing."""

    def __init__(self) -> None:
        self.pipe, theirs = Pipe()
        self.tasks: list[T] = []  # the one it has, or none
        with theirs:
            place = theirs.fileno()
            self.process = subprocess.Popen(
                # -P: modules come from where this process has them, not from the working folder.
                [sys.executable, "-P", "-c", PROGRAM.format(place)],
                pass_fds=[place],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    def send(self, what: object) -> None:
        """Give the worker what it starts with, or a task."""
        with _told_of_death():
            self.pipe.send(what)

    def receive(self) -> tuple[str, Any]:
        """Return what the worker says next: its kind and its value."""
        with _told_of_death():
            kind, value = self.pipe.recv()
        return kind, value


@contextlib.contextmanager
def _told_of_death() -> Iterator[None]:
    try:
        yield
    except PIPE_ENDED as error:
        raise RunError(
            "a worker process was killed, perhaps for want of memory: "
            "run the same command again, with fewer --workers if it happens again"
        ) from error


def _handed_out(
    start: Start[T, R], tasks: Iterable[T], members: list[_Member[T, R]], on_note: Tell
) -> Iterator[tuple[T, R]]:
    for member in members:
        member.send(start)
    idle = list(members)
    busy: dict[Any, _Member[T, R]] = {}
    queue = iter(tasks)
    while True:
        for task in islice(queue, len(idle)):
            member = idle.pop()
            member.tasks.append(task)
            member.send(task)
            busy[member.pipe] = member
        if not busy:
            return
        for pipe in wait(busy):
            kind, value = busy[pipe].receive()
            if kind == _NOTE:
                on_note(value)
            elif kind == _ERROR:
                raise value
            else:
                member = busy.pop(pipe)
                idle.append(member)
                yield member.tasks.pop(), value


@contextlib.contextmanager
def _ctrl_c_is_ours() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: it comes to all, and the parent decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _dismiss(members: list[_Member[T, R]]) -> None:
    """End the workers: those at work at once, the others as soon as they see their pipe closed."""
    for member in members:
        if member.tasks:
            member.process.terminate()  # with its pipe open, since it may have files to remove
        else:
            member.pipe.close()
    for member in members:
        try:
            member.process.wait(SECONDS_TO_LEAVE)
        except subprocess.TimeoutExpired:
            member.process.kill()
            member.process.wait()
        member.pipe.close()


def serve(place: int) -> None:
    """Do what the parent sends through the pipe with descriptor `place`, until it closes it."""
    signal.signal(signal.SIGTERM, _leave)
    pipe = Connection(place)
    threading.Thread(target=_end_with_parent, args=(place,), daemon=True).start()
    with contextlib.suppress(*PIPE_ENDED):
        kind, work = _outcome(pipe.recv(), lambda note: pipe.send((_NOTE, note)))
        if kind == _ERROR:
            pipe.send((kind, work))
            return
        while True:
            pipe.send(_outcome(work, pipe.recv()))


def _outcome(function: Callable[[Any], Any], argument: Any) -> tuple[str, Any]:
    try:
        return _RESULT, function(argument)
    except Exception as error:
        error.add_note(traceback.format_exc())  # the parent's traceback ends at the pipe
        return _ERROR, error


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(1)


def _end_with_parent(place: int) -> None:
    """End this process when the other end of the pipe is closed: by the parent, or its death."""
    watch = select.poll()
    watch.register(place, 0)
    watch.poll()
    os._exit(1)
