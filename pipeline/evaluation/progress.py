"""Counts the progress of an evaluation over models, classical codecs and the report."""

from __future__ import annotations

from threading import Lock

from pipeline.common.progress import Progress


class Meter:
    """Counts the steps of all threads and reports them to `progress`; the total may grow."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress
        self.done = self.total = 0
        self.lock = Lock()

    def expect(self, steps: int) -> None:
        """Add `steps` to the total."""
        with self.lock:
            self.total += steps

    def step(self, note: str) -> None:
        """Count one step as done."""
        with self.lock:
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total, note)
