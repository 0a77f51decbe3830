"""Progress of long work: a bar on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from pipeline.common.printable import printable

# Reports progress: how many are done, of how many (None: unknown), and a short note.
Progress = Callable[[int, int | None, str], None]
SECONDS_BETWEEN_LINES = 5.0


def silent(done: int, total: int | None, note: str) -> None:
    """Show nothing: for processes other than the first."""


@contextmanager
def progress(title: str, unit: str, stream: TextIO | None = None) -> Iterator[Progress]:
    """Yield a function that shows how far the work called `title` is, counted in `unit`."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _bar(title, unit) as report:
            yield report
    else:
        yield _lines(title, unit, stream)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(printable(title), total=None, note="")
        yield lambda done, total, note: bar.update(
            task, completed=done, total=total, note=printable(note)
        )


def _lines(title: str, unit: str, stream: TextIO) -> Progress:
    """Return a report that writes a line every few seconds, and one at the end."""
    last, complete = time.monotonic(), False
    first: tuple[float, int] | None = None  # the time and the count of the first report

    def report(done: int, total: int | None, note: str) -> None:
        nonlocal last, complete, first
        now = time.monotonic()
        first = first or (now, done)
        if complete or (done != total and now - last < SECONDS_BETWEEN_LINES):
            return
        last, complete = now, done == total
        of = "" if total is None else f" of {total}"
        left = _time_left(now - first[0], done - first[1], done, total)
        told = f"{title}: {done}{of} {unit}{left}{', ' + note if note else ''}"
        stream.write(f"{printable(told)}\n")
        stream.flush()

    return report


def _time_left(elapsed: float, made: int, done: int, total: int | None) -> str:
    """Return how long the rest takes at the pace of the `made` since the first report."""
    if not total or made <= 0 or done >= total:
        return ""
    return f", {duration(elapsed / made * (total - done))} left"


def duration(seconds: float) -> str:
    """Return a time as hours:minutes:seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
