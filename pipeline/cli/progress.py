"""Progress of long work: a bar on a terminal, plain lines elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

# What a room calls: how many are done, of how many (None: unknown), and a few words more.
Report = Callable[[int, int | None, str], None]
SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(title: str, unit: str, stream: TextIO | None = None) -> Iterator[Report]:
    """Yield a function that shows how far the work called `title` is, counted in `unit`."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _bar(title, unit) as report:
            yield report
    else:
        yield _lines(title, unit, stream)


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def _lines(title: str, unit: str, stream: TextIO) -> Report:
    """Return a report that writes a line every few seconds, and one at the end."""
    start = time.monotonic()
    last, complete = start, False

    def report(done: int, total: int | None, note: str) -> None:
        nonlocal last, complete
        now = time.monotonic()
        if complete or (done != total and now - last < SECONDS_BETWEEN_LINES):
            return
        last, complete = now, done == total
        of = "" if total is None else f" of {total}"
        left = _time_left(now - start, done, total)
        stream.write(f"{title}: {done}{of} {unit}{left}{', ' + note if note else ''}\n")
        stream.flush()

    return report


def _time_left(elapsed: float, done: int, total: int | None) -> str:
    if not total or not done or done >= total:
        return ""
    return f", {elapsed / done * (total - done):.0f} s left"
