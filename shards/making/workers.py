"""Makes shards: in this process, or in several that each make whole shards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from pipeline.common.workers import Tell, work_in_processes
from shards.making.stage_times import Spent
from shards.making.write import Context, ShardMaker
from shards.manifest import ShardInfo

SECONDS_BETWEEN_REPORTS = 0.2


@dataclass(frozen=True)
class ShardJob:
    """A shard to make: its number, and its rows of the plan."""

    number: int
    rows: pa.Table


@dataclass(frozen=True)
class Done:
    """Progress of a run: pictures looked at, bytes, pictures rejected, and samples written.

    `spent` is the time that augmenting took.
    """

    pictures: int = 0
    bytes: int = 0
    rejects: int = 0
    samples: int = 0
    spent: Spent = field(default_factory=Spent)

    def __add__(self, more: Done) -> Done:
        """Return both together."""
        return Done(
            self.pictures + more.pictures,
            self.bytes + more.bytes,
            self.rejects + more.rejects,
            self.samples + more.samples,
            self.spent + more.spent,
        )


def run_jobs(
    context: Context,
    jobs: Iterable[ShardJob],
    count: int,
    workers: int,
    report: Callable[[Done], None],
) -> None:
    """Make the shards of `jobs` (`count` of them) with `workers` processes.

    One worker makes them in this process. Where there are fewer shards than workers, a shard gets
    several threads.

    Raises:
        ShardsError, ShardsRuntimeError: the first that a worker met, or a worker died.
    """
    total = Done()

    def add(more: Done) -> None:
        nonlocal total
        total += more
        report(total)

    if workers == 1 or count == 0 or not context.store.shared_between_processes:
        with contextlib.closing(_Worker(context, workers, add)) as worker:
            for job in jobs:
                worker(job)
        return
    processes = min(workers, count)
    start = partial(_Worker, context, -(-workers // processes))
    for _ in work_in_processes(start, jobs, processes, add):
        pass


class _Worker:
    """Makes shards one after the other, and reports its progress now and then."""

    def __init__(self, context: Context, threads: int, tell: Tell) -> None:
        self.threads = threads
        self.tell = tell
        self.since = Done()
        self.told = time.monotonic()
        self.maker = ShardMaker(context, self.count)

    def __call__(self, job: ShardJob) -> ShardInfo:
        """Make a shard."""
        info = self.maker.make(job.number, job.rows, self.threads)
        self.report()
        return info

    def count(self, size: int, samples: int) -> None:
        """Count a picture as done."""
        self.since += Done(1, size, int(not samples), samples)
        if time.monotonic() - self.told > SECONDS_BETWEEN_REPORTS:
            self.report()

    def report(self) -> None:
        """Report the progress since the last time."""
        self.tell(self.since + Done(spent=self.maker.spent()))
        self.since, self.told = Done(), time.monotonic()

    def close(self) -> None:
        """Close the sources."""
        self.maker.close()
