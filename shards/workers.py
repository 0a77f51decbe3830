"""Makes shards in worker processes, which end when their parent does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from typing import Any

import pyarrow as pa

from shards.errors import ShardsRuntimeError
from shards.manifest import ShardInfo
from shards.write import Context, ShardMaker

SECONDS_BETWEEN_REPORTS = 0.2
# Numbers that processes share: the stop sign, then pictures, bytes and rejects of each slot. They
# have no lock, which a killed worker would hold for ever: a slot belongs to one job at a time.
Board = Any
COUNTS = 3


@dataclass(frozen=True)
class Job:
    """A shard to make: its number, and its rows of the plan."""

    number: int
    rows: pa.Table


@dataclass(frozen=True)
class _Order:
    """A job as a worker gets it: with a slot of the board, and how many threads it may use."""

    job: Job
    slot: int
    threads: int


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
    free = list(range(processes + 1))
    slots: dict[Future[ShardInfo], int] = {}
    queue = iter(jobs)
    with _pool(context, processes, len(free)) as (pool, board):
        while True:
            while free and (job := next(queue, None)) is not None:
                slot = free.pop()
                slots[pool.submit(_make, _Order(job, slot, threads))] = slot
            if not slots:
                break
            ready, _ = wait(slots, SECONDS_BETWEEN_REPORTS, FIRST_COMPLETED)
            for future in ready:
                future.result()
                free.append(slots.pop(future))
            report(Done(*(sum(board[1 + kind :: COUNTS]) for kind in range(COUNTS))))


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
def _pool(
    context: Context, processes: int, slots: int
) -> Iterator[tuple[ProcessPoolExecutor, Board]]:
    """Yield a pool of workers; on an error they stop at the next sample and leave nothing."""
    spawn = multiprocessing.get_context("spawn")
    board = spawn.RawArray("q", 1 + COUNTS * slots)
    pool = ProcessPoolExecutor(processes, spawn, _start, (context, board))
    try:
        yield pool, board
    except BaseException as error:
        board[0] = 1
        pool.shutdown(wait=True, cancel_futures=True)
        # A worker that dies while it starts leaves a pipe that nobody reads.
        if isinstance(error, BrokenProcessPool | BrokenPipeError):
            raise ShardsRuntimeError(
                "a worker process was killed, perhaps for want of memory: "
                "run the same command again, with fewer --workers if it happens again"
            ) from error
        raise
    pool.shutdown()


class _Worker:
    """What a worker process keeps between its jobs."""

    def __init__(self, context: Context, board: Board) -> None:
        self.maker = ShardMaker(context, self.count)
        self.board = board
        self.slot = 0

    def count(self, size: int, rejected: bool) -> None:
        """Add a picture to the board; stop if the run was stopped."""
        first = 1 + COUNTS * self.slot
        for place, amount in enumerate((1, size, int(rejected)), first):
            self.board[place] += amount
        if self.board[0]:
            raise _StoppedError


_workers: list[_Worker] = []  # one in a worker process, none elsewhere


def _start(context: Context, board: Board) -> None:
    """Prepare a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _workers.append(_Worker(context, board))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _make(order: _Order) -> ShardInfo:
    worker = _workers[0]
    worker.slot = order.slot
    return worker.maker.make(order.job.number, order.job.rows, order.threads)
