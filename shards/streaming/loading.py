"""Worker processes that make batches ahead of use; a dead one is started again."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any, Generic, TypeVar

from torch import Generator
from torch.utils.data import DataLoader, IterableDataset

T = TypeVar("T")

# Batches that each worker makes ahead of use.
AHEAD = 2
# Seconds that a worker which is killed gets to go.
_SECONDS_TO_GO = 1.0
# A worker ends when its loader says so, or is gone. Signals that are sent to all processes of a job
# are for those that train: what they ask for, they do themselves.
_FOR_OTHERS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


class WorkerDiedError(Exception):
    """A worker process has ended unasked; the message says how."""


class Workers(Generic[T]):
    """An iteration over `made` by `count` processes, each of which makes its share, in order."""

    def __init__(self, made: IterableDataset[T], count: int, pin: bool) -> None:
        loader: DataLoader[T] = DataLoader(
            made,
            batch_size=None,
            num_workers=count,
            prefetch_factor=AHEAD,
            pin_memory=pin,
            worker_init_fn=_leave_signals,
            generator=Generator(),  # the process's own generator is left alone
        )
        with _signals_for_others():
            self._iterator: Any = iter(loader)

    def __iter__(self) -> Iterator[T]:
        """Yield the items that the workers make; raises `WorkerDiedError`."""
        while True:
            try:
                made = next(self._iterator)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:
                died = self._died()
                if died is None and isinstance(error, RuntimeError):
                    raise
                # Items that a dead worker has made can't be fetched from it any more.
                raise WorkerDiedError(died or f"can't be heard ({error!r})") from error
            yield made

    def _died(self) -> str | None:
        for worker in self._iterator._workers:
            worker.join(_SECONDS_TO_GO / len(self._iterator._workers))
        gone = [one for one in self._iterator._workers if not one.is_alive()]
        if not gone:
            return None
        code = gone[0].exitcode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        memory = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{memory}"

    def end(self, at_once: bool = False) -> None:
        """End the processes after their present item, or `at_once`, if they hang."""
        iterator, self._iterator = self._iterator, None
        if iterator is None:
            return
        workers = iterator._workers
        if at_once:
            # Its own way to end waits for each worker.
            iterator._shutdown = True
        del iterator
        for worker in workers:
            worker.kill()
            worker.join(_SECONDS_TO_GO)


def _leave_signals(_: int) -> None:
    """Block signals for others in a worker: a fork server may have started without that."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_OTHERS)


@contextlib.contextmanager
def _signals_for_others() -> Iterator[None]:
    """Start workers that signals to a whole job don't reach.

    What is blocked while a process is started stays so in it, however it is started. torch would
    have the death of a worker raised in the middle of whatever this process does then; here it is
    found when the next batch is waited for.
    """
    if multiprocessing.get_start_method() != "fork":
        # Where it starts with the first worker, it unblocks SIGTERM in this process.
        resource_tracker.ensure_running()
    handler = signal.getsignal(signal.SIGCHLD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_OTHERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Another thread than the main one can't, and torch doesn't there.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
