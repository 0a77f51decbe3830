"""Makes shards in worker processes, which end when their parent does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import pyarrow as pa

from shards.errors import ShardsRuntimeError
from shards.manifest import ShardInfo
from shards.write import Context, ShardMaker

SECONDS_BETWEEN_REPORTS = 0.2
# Tallies of samples, bytes and rejects that the workers of a run add to.
Tallies = tuple["Synchronized[int]", "Synchronized[int]", "Synchronized[int]"]


@dataclass(frozen=True)
class Job:
    """A shard to make: its number, and its rows of the plan."""

    number: int
    rows: pa.Table


@dataclass(frozen=True)
class Done:
    """How far a run is: pictures looked at, their bytes, and how many of them were rejected."""

    pictures: int
    bytes: int
    rejects: int


class _StoppedError(Exception):
    """The run was interrupted."""


def run_jobs(
    context: Context,
    jobs: Iterable[Job],
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
    if workers == 1 or count == 0 or not context.store.shared_between_processes:
        _run_here(context, jobs, workers, report)
        return
    processes = min(workers, count)
    threads = -(-workers // processes)
    with _pool(context, processes) as (pool, tallies):
        waiting: set[Future[ShardInfo]] = set()
        queue = iter(jobs)
        more = True
        while more or waiting:
            while more and len(waiting) < processes + 1:
                job = next(queue, None)
                more = job is not None
                if job is not None:
                    waiting.add(pool.submit(_make, job, threads))
            ready, waiting = wait(waiting, SECONDS_BETWEEN_REPORTS, FIRST_COMPLETED)
            for future in ready:
                _result(future)
            report(Done(*(tally.value for tally in tallies)))


def _run_here(
    context: Context, jobs: Iterable[Job], threads: int, report: Callable[[Done], None]
) -> None:
    pictures = total = rejects = 0
    last = time.monotonic()

    def on_sample(size: int, rejected: bool) -> None:
        nonlocal pictures, total, rejects, last
        pictures, total, rejects = pictures + 1, total + size, rejects + rejected
        if time.monotonic() - last > SECONDS_BETWEEN_REPORTS:
            last = time.monotonic()
            report(Done(pictures, total, rejects))

    maker = ShardMaker(context, on_sample)
    with contextlib.closing(maker):
        for job in jobs:
            maker.make(job.number, job.rows, threads)
    report(Done(pictures, total, rejects))


@contextlib.contextmanager
def _pool(context: Context, processes: int) -> Iterator[tuple[ProcessPoolExecutor, Tallies]]:
    """Yield a pool of workers; on an error they stop at the next sample and leave nothing."""
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    tallies: Any = (spawn.Value("q", 0), spawn.Value("q", 0), spawn.Value("q", 0))
    pool = ProcessPoolExecutor(processes, spawn, _start, (context, stop, tallies))
    try:
        yield pool, tallies
    except BaseException:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


def _result(future: Future[ShardInfo]) -> ShardInfo:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise ShardsRuntimeError(
            "a worker process was killed, perhaps for want of memory: "
            "run the same command again, with fewer --workers if it happens again"
        ) from error


# What a worker process keeps between its jobs.
_worker: deque[ShardMaker] = deque(maxlen=1)


def _start(context: Context, stop: Any, tallies: Tallies) -> None:
    """Prepare a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def on_sample(size: int, rejected: bool) -> None:
        for tally, amount in zip(tallies, (1, size, int(rejected)), strict=True):
            with tally.get_lock():
                tally.value += amount
        if stop.is_set():
            raise _StoppedError

    _worker.append(ShardMaker(context, on_sample))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _make(job: Job, threads: int) -> ShardInfo:
    return _worker[0].make(job.number, job.rows, threads)
