"""Works on many files: checks them before any work, shares them among threads, can resume.

The threads belong to this process, and each uses one torch thread. torch releases Python's lock, so
threads are as fast as processes; the weights are in memory only once; and no worker process can
die. The results do not depend on the number of threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.codec.errors import CodecError, MismatchError
from pipeline.common.atomic import sweep
from pipeline.common.errors import in_words
from pipeline.common.progress import Progress
from pipeline.common.targets import check_target

if TYPE_CHECKING:
    from pipeline.codec.model import Model

SHOWN = 3  # failures in an error's message; its notes have the others


@dataclass(frozen=True)
class Conversion:
    """A file, and the stream or picture that is to be made of it."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Kind:
    """A kind of work: the command's name, and what it does with a job.

    `is_done` tells whether the target is what `work` would make; `is_own` tells whether an existing
    target is a file that the command wrote; `work` returns the number of bytes of the stream.
    """

    command: str
    is_own: Callable[[Conversion], bool]
    is_done: Callable[[Conversion], bool]
    work: Callable[[Conversion], int]


class Folder(TypedDict):
    """The result of working on many files.

    `bytes` is the size of all streams that were written or read; `passed_over` has the files of a
    folder that were skipped, by their paths below it.
    """

    written: int
    kept: int
    bytes: int
    passed_over: list[str]


def check_jobs(jobs: Sequence[Conversion], kind: Kind, force: bool = False) -> None:
    """Raise `CodecError` or `TargetError` unless all jobs can go ahead.

    No two jobs may have the same target, and no target may be a source. A file at a target must be
    the command's own, unless `force`. The folders of targets must be writable, or possible to make.
    """
    makers: dict[Path, Path] = {}
    for job in jobs:
        place = Path(os.path.realpath(job.target))
        if place in makers:
            first = makers[place]
            twice = first == job.source
            raise CodecError(
                f"{first} is named twice"
                if twice
                else f"{first} and {job.source} would both become {job.target}: rename one, or "
                "give each a target of its own"
            )
        makers[place] = job.source
    existing = [job for job in jobs if job.target.exists() or job.target.is_symlink()]
    sources = {_identity(job.source): job.source for job in jobs} if existing else {}
    by_folder = {job.target.parent: job for job in jobs}  # one job to check each folder with
    for job in [*existing, *by_folder.values()]:
        same = sources.get(_identity(job.target))
        check_target(
            job.target,
            kind.command,
            # mypy infers no type for a lambda with a default.
            lambda _, job=job: kind.is_own(job),  # type: ignore[misc]
            sources=[] if same is None else [same],
            force=force,
            make_folder=True,
        )


def go_through(
    jobs: Sequence[Conversion],
    kind: Kind,
    models: Callable[[Sequence[Conversion]], Sequence[Model]],
    workers: int = 1,
    progress: Progress | None = None,
    force: bool = False,
) -> Folder:
    """Do all jobs that are not done yet; `models` returns the models that these jobs need.

    All are tried. If some fail, an error at the end tells their number and names the first ones;
    its notes name the others. It is a `CodecError` if all of them were bad input, else the error of
    a failure at run time.
    """
    check_jobs(jobs, kind, force)
    for folder in {job.target.parent for job in jobs}:
        sweep(folder)  # what a killed run left
    todo = [job for job in jobs if not kind.is_done(job)]
    kept, size = len(jobs) - len(todo), 0
    errors: list[Exception] = []
    for done, outcome in enumerate(_share_out(todo, kind, models(todo), workers), kept + 1):
        if isinstance(outcome, Exception):
            errors.append(outcome)
        else:
            size += outcome
        if progress is not None:
            progress(done, len(jobs), f"{len(errors)} failed" if errors else "")
    if errors:
        raise _all_of(errors, len(jobs))
    return Folder(written=len(todo), kept=kept, bytes=size, passed_over=[])


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _all_of(errors: list[Exception], count: int) -> Exception:
    """Return one error for all: the worst kind first, the others after it."""
    # First mismatches, then errors of the system, then bad input.
    errors = sorted(errors, key=lambda e: (not isinstance(e, MismatchError), _is_input(e)))
    kind = OSError if isinstance(errors[0], OSError) else type(errors[0])
    reasons, more = "; ".join(map(str, errors[:SHOWN])), errors[SHOWN:]
    reasons += f"; and {len(more)} more:" if more else ""
    others = ", the others are there" if len(errors) < count else ""
    failed = kind(f"{len(errors)} of {count} failed{others}: {reasons}")
    for error in more:
        failed.add_note(f"  {error}")
    return failed


def _is_input(error: Exception) -> bool:
    return isinstance(error, CodecError)


def _share_out(
    todo: Sequence[Conversion], kind: Kind, models: Sequence[Model], workers: int
) -> Iterator[int | Exception]:
    """Yield, for each job as it is done, its bytes or its error."""

    def work(job: Conversion) -> int | Exception:
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            return kind.work(job)
        except (CodecError, MismatchError, OSError) as error:
            message = in_words(error)
            named = str(job.source) in message
            return _of_same_kind(error, message if named else f"{job.source}: {message}")

    for model in models:
        model.coder()  # made before threads start, or each would make its own
    with _one_thread_each(), _stoppable(models) as stop:
        pool = ThreadPoolExecutor(workers)
        try:
            for future in as_completed([pool.submit(work, job) for job in todo]):
                yield future.result()
        finally:
            # After Ctrl-C this waits for a layer, not for a picture.
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _of_same_kind(error: Exception, sentence: str) -> Exception:
    return OSError(sentence) if isinstance(error, OSError) else type(error)(sentence)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Nothing went wrong, so its name does not end in Error.
class _Stopped(Exception):  # noqa: N818
    """A thread was told to abandon its picture."""


@contextmanager
def _stoppable(models: Sequence[Model]) -> Iterator[threading.Event]:
    """Yield an event; once it is set, the models' layers raise `_Stopped`."""
    stop = threading.Event()

    def check(*_: object) -> None:
        if stop.is_set():
            raise _Stopped

    modules = [module for model in models for module in model.modules()]
    handles = [module.register_forward_pre_hook(check) for module in modules]
    try:
        yield stop
    finally:
        for handle in handles:
            handle.remove()
