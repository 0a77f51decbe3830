"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

SECONDS_BETWEEN_LINES = 5.0


class Report(Protocol):
    """What training calls after each step."""

    def __call__(self, done: int, total: int, note: str) -> None:
        """Show that `done` of `total` steps are done, and `note`."""
        ...


def silent(done: int, total: int, note: str) -> None:
    """Show nothing: what processes other than the first do."""


@contextmanager
def steps(title: str, stream: TextIO | None = None) -> Iterator[Report]:
    """Yield a report of the steps of the run called `title`."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _Lines(title, stream)


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, note="")

        def report(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield report


class _Lines:
    def __init__(self, title: str, stream: TextIO) -> None:
        self.title, self.stream = title, stream
        self.last = time.monotonic()

    def __call__(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if done == total or now - self.last >= SECONDS_BETWEEN_LINES:
            self.last = now
            self.stream.write(f"{self.title}: step {done} of {total}, {note}\n")
            self.stream.flush()
