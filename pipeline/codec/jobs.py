"""Many files at once: checked before any work, shared out among threads, resumable.

Files are shared out among threads of this process, each with one of torch's threads: torch works
outside Python's lock, so that they are as quick as processes; the weights are in memory once; and
there is no worker that could die apart. What comes out does not depend on their number.
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

SHOWN = 3  # failures in an error's sentence; its notes have the others


@dataclass(frozen=True)
class Conversion:
    """A file, and the stream or picture that is to be made of it."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Kind:
    """A kind of work: the command's name, and what it does with a job.

    `is_done` tells whether the target is what `work` would make; `is_own` whether an existing
    target is a file that the command writes there; `work` returns the bytes of the stream.
    """

    command: str
    is_own: Callable[[Conversion], bool]
    is_done: Callable[[Conversion], bool]
    work: Callable[[Conversion], int]


class Folder(TypedDict):
    """What going through many files came to.

    `bytes` are those of the streams worked on, `passed_over` the files of a folder that were not
    taken, by their paths below it.
    """

    written: int
    kept: int
    bytes: int
    passed_over: list[str]


def check_jobs(jobs: Sequence[Conversion], kind: Kind, force: bool = False) -> None:
    """Raise `CodecError` or `TargetError` unless all jobs can go ahead.

    No two have one target, no target is any job's source, what lies at a target is the command's
    own, unless `force`, and their folders can be made and written to.
    """
    makers: dict[Path, Path] = {}
    for job in jobs:
        place = Path(os.path.realpath(job.target))
        if place in makers:
            one = makers[place]
            twice = one == job.source
            raise CodecError(
                f"{one} is named twice"
                if twice
                else f"{one} and {job.source} would both become {job.target}: rename one, or give "
                "each a target of its own"
            )
        makers[place] = job.source
    there = [job for job in jobs if job.target.exists() or job.target.is_symlink()]
    read = {_identity(job.source): job.source for job in jobs} if there else {}
    one_each = {job.target.parent: job for job in jobs}  # whose folders are looked at
    for job in [*there, *one_each.values()]:
        same = read.get(_identity(job.target))
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
    """Do all jobs that are not done; `models` returns the models that those take.

    All are tried. If some can't be done, the error raised then says how many and names the first
    ones, its notes the others: a `CodecError` where all were bad input, else what went wrong at
    run time.
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
    # A whole file that decodes to something else, then what the system said, then bad input.
    errors = sorted(errors, key=lambda e: (not isinstance(e, MismatchError), _is_input(e)))
    kind = OSError if isinstance(errors[0], OSError) else type(errors[0])
    said, more = "; ".join(map(str, errors[:SHOWN])), errors[SHOWN:]
    said += f"; and {len(more)} more:" if more else ""
    others = ", the others are there" if len(errors) < count else ""
    failed = kind(f"{len(errors)} of {count} failed{others}: {said}")
    for error in more:
        failed.add_note(f"  {error}")
    return failed


def _is_input(error: Exception) -> bool:
    return isinstance(error, CodecError)


def _share_out(
    todo: Sequence[Conversion], kind: Kind, models: Sequence[Model], workers: int
) -> Iterator[int | Exception]:
    """Yield for each job, as it is done, its bytes or why there are none."""

    def one(job: Conversion) -> int | Exception:
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
            return kind.work(job)
        except (CodecError, MismatchError, OSError) as error:
            said = in_words(error)
            named = str(job.source) in said
            return _of_same_kind(error, said if named else f"{job.source}: {said}")

    for model in models:
        model.coder()  # made before there are threads, that each doesn't make its own
    with _one_thread_each(), _stoppable(models) as stop:
        pool = ThreadPoolExecutor(workers)
        try:
            for future in as_completed([pool.submit(one, job) for job in todo]):
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
    """A thread was told to leave its picture."""


@contextmanager
def _stoppable(models: Sequence[Model]) -> Iterator[threading.Event]:
    """Yield an event after which the models' layers refuse to work."""
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
