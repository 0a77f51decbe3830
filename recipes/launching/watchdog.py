"""Notices that a rank hangs, reports which one and where, and ends the launch for its scheduler.

Ranks that train together wait for each other in every step. When one of them stops, because its
machine swaps, its loader stalls or its GPU no longer answers, the others wait for ever. Here each
rank has a thread that counts the seconds without progress. After `patience` of them it writes what
the rank is doing, with the stacks of all its threads, to a file in the run's folder. A rank that
writes none, or that was not waiting for others, is the one that hangs. Nothing is written and
nothing is sent while training makes progress.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

# The activity of a rank that waits in a collective operation.
OTHERS = "waits for the other ranks"
# Time for a rank that hangs too to report, as a share of the patience, and at most in seconds.
GRACE, LONGEST_GRACE = 0.5, 60.0


class Watchdog:
    """Watches the progress of one rank among those that train together.

    Used as a context manager around training; a rank that trains alone is not watched.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        rank: int,
        patience: float,
        end: Callable[[Path, str], None],
    ) -> None:
        """Take where reports go, the ranks' `names`, and what ends this process.

        `patience` is in seconds. `end` gets the folder of the reports and the sentence; only the
        first rank that answers says the sentence, the others get "".
        """
        self.folder, self.names, self.rank = folder, names, rank
        self.patience, self._end = patience, end
        self._doing, self._step, self._marks = "begins", 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def mark(self, doing: str, step: int | None = None) -> None:
        """Record that this rank makes progress, and what it does from now on."""
        self._doing = doing
        self._step = self._step if step is None else step
        self._marks += 1

    @contextmanager
    def others(self) -> Iterator[None]:
        """Mark that this rank waits for the others in here."""
        before = self._doing
        self.mark(OTHERS)
        try:
            yield
        finally:
            self.mark(before)

    def __enter__(self) -> Self:
        if len(self.names) > 1:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while self._stands_still(self.patience):
            path = self._report()
            marks = self._marks
            if self._stands_still(min(self.patience * GRACE, LONGEST_GRACE), marks):
                self._give_up(path.parent)
            # The rank went on after all, or training is over.
            path.unlink(missing_ok=True)

    def _stands_still(self, seconds: float, marks: int | None = None) -> bool:
        """Wait until there was no progress for `seconds`; return False when training is over.

        With `marks`, progress beyond them returns False as well. Only time in which this process
        runs counts: one that was stopped and goes on must not believe that the others hang.
        """
        pause = min(seconds / 10, 5.0)
        seen, idle, last = self._marks, 0.0, time.monotonic()
        while idle < seconds:
            if self._over.wait(pause) or marks not in (None, self._marks):
                return False
            now = time.monotonic()
            idle, last = idle + min(now - last, 2 * pause), now
            if seen != self._marks:
                seen, idle = self._marks, 0.0
        return True

    def _report(self) -> Path:
        """Write this rank's activity and the stacks of all its threads; return the file."""
        path = self.folder / f"hang-step-{self._step:08d}" / _name(self.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            file.write(_head(self._doing, self.names[self.rank]))
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        return path

    def _give_up(self, folder: Path) -> None:
        answers = read(folder, self.names)
        sentence = verdict(answers, self.names, self._step, self.patience)
        first = min(answers, default=self.rank) == self.rank
        self._end(folder, f"{sentence}; all stacks are in {folder}" if first else "")


def verdict(answers: Mapping[int, str], names: Sequence[str], step: int, patience: float) -> str:
    """Return a message that names the ranks that hang and where.

    `answers` has what each rank that answered was doing.
    """
    silent = [name for rank, name in enumerate(names) if rank not in answers]
    busy = [f"{names[rank]} {doing}" for rank, doing in answers.items() if doing != OTHERS]
    told = [f"{name} does not answer" for name in silent] + busy
    if not told:
        told = ["all wait for each other, so the network between them may have failed"]
    return f"no progress for {patience:g} s at step {step}: {', '.join(told)}"


def read(folder: Path, names: Sequence[str]) -> dict[int, str]:
    """Return the activity of each rank that wrote a report in this launch, by rank."""
    found = {}
    for rank, name in enumerate(names):
        try:
            text = (folder / _name(rank)).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        doing = text.partition("\n")[0]
        if text.startswith(_head(doing, name)):
            found[rank] = doing
    return found


def _head(doing: str, name: str) -> str:
    return f"{doing}\n{name}\n\n"


def names_of_ranks(accelerator: Any) -> list[str]:
    """Return each rank's number, process and host, the same list on all ranks."""
    from accelerate.utils import gather_object

    rank, host = accelerator.process_index, socket.gethostname()
    mine = [f"rank {rank} (process {os.getpid()} on {host})"]
    names: list[str] = gather_object(mine) if accelerator.num_processes > 1 else mine
    return names


def _name(rank: int) -> str:
    return f"rank-{rank:04d}.txt"
