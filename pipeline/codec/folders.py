"""Folders of pictures to folders of `.cca` files and back: in parallel, and resumable.

Files are shared out among threads of this process, each with one of torch's threads: torch works
outside Python's lock, so that they are as quick as processes; the weights are in memory once; and
there is no worker that could die apart. What comes out does not depend on their number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch

from pipeline.codec.bitstream import Header, read_stream
from pipeline.codec.coding import MAX_MEMORY
from pipeline.codec.errors import CodecError, MismatchError
from pipeline.codec.files import compress_file, decompress_file, read_file
from pipeline.codec.model import Model
from pipeline.codec.picture import read_picture
from pipeline.common.atomic import sweep
from pipeline.common.pictures import find_pictures
from pipeline.common.progress import Progress

# A file and what is to be made of it; working on one returns the bytes of the stream.
Job = tuple[Path, Path]
Work = Callable[[Path, Path], int]


@dataclass(frozen=True)
class Task:
    """How to code each picture; `max_memory`, in bytes, is what each worker may take."""

    model: Model
    target: Path
    max_memory: int = MAX_MEMORY
    workers: int = 1


class Folder(TypedDict):
    """What going through a folder came to.

    `bytes` are those of the streams worked on, `passed_over` the files that are no pictures, by
    their paths below the folder.
    """

    written: int
    kept: int
    bytes: int
    passed_over: list[str]


def compress_folder(
    source: Path,
    task: Task,
    profile: bool = True,
    verify: bool = False,
    rate: float | None = None,
    progress: Progress | None = None,
) -> Folder:
    """Compress every picture under `source` to the same place under `task.target`, plus .cca.

    A stream that is there already is kept if it is whole, no older than its picture, and of the
    same model, rate and `profile`. All pictures are tried; if some can't be compressed, the error
    raised then names the first and their number: a `CodecError` where all were bad input, else
    what went wrong at run time.
    """
    rate = task.model.config.check_rate(rate)

    def is_done(picture: Path, stream: Path) -> bool:
        header = _header(stream, picture)
        mark = task.model.fingerprint[:16], rate
        return (
            header is not None
            and (header.fingerprint, header.rate) == mark
            and profile >= header.profile
        )

    def work(picture: Path, stream: Path) -> int:
        content = read_picture(picture, profile=profile)
        return compress_file(task.model, content, stream, verify, task.max_memory, rate)["bytes"]

    found, others = find_pictures(source)
    # The whole name stays, so that a.png and a.jpg don't meet in a.cca.
    jobs = [(file, _beside(file, source, task.target, ".cca")) for file in found]
    nothing = f"there are no pictures in {source}"
    done = _go_through(jobs, nothing, task, is_done, work, progress)
    done["passed_over"] = [str(file.relative_to(source)) for file in others]
    return done


def decompress_folder(
    source: Path, task: Task, deep: bool = False, progress: Progress | None = None
) -> Folder:
    """Decompress every .cca file under `source` to a PNG at the same place under `task.target`.

    a.png.cca and a.cca become a.png, a.jpg.cca becomes a.jpg.png. A picture that is no older than
    its stream is kept. Errors are raised as in `compress_folder`.
    """

    def is_done(stream: Path, picture: Path) -> bool:
        return picture.is_file() and _is_newer(picture, stream)

    def work(stream: Path, picture: Path) -> int:
        data = read_file(stream)
        decompress_file(task.model, data, picture, deep=deep, max_memory=task.max_memory)
        return len(data)

    jobs = []
    for file in _files(source, lambda path: path.suffix.lower() == ".cca"):
        name = file.with_suffix("")
        plain = name.with_suffix("") if name.suffix.lower() == ".png" else name
        jobs.append((file, _beside(plain, source, task.target, ".png")))
    return _go_through(jobs, f"there are no .cca files in {source}", task, is_done, work, progress)


def _files(source: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    return sorted(
        path
        for path in source.rglob("*")
        if wanted(path) and path.is_file() and not path.name.startswith(".")
    )


def _beside(file: Path, source: Path, target: Path, suffix: str) -> Path:
    relative = file.relative_to(source)
    return target / relative.with_name(relative.name + suffix)


def _is_newer(file: Path, than: Path) -> bool:
    return file.stat().st_mtime >= than.stat().st_mtime


def _header(stream: Path, picture: Path) -> Header | None:
    """Return the header of a stream that is whole and no older than its picture, else None."""
    try:
        return read_stream(stream.read_bytes()).header if _is_newer(stream, picture) else None
    except (OSError, CodecError):
        return None


def _go_through(
    jobs: Sequence[Job],
    nothing: str,
    task: Task,
    is_done: Callable[[Path, Path], bool],
    work: Work,
    progress: Progress | None,
) -> Folder:
    if not jobs:
        raise CodecError(nothing)
    for folder in {target.parent for _, target in jobs}:
        sweep(folder)  # what a killed run left
    todo = [job for job in jobs if not is_done(*job)]
    kept = len(jobs) - len(todo)
    size = 0
    errors: list[Exception] = []
    task.model.coder()  # Made before there are threads, that each doesn't make its own.
    for done, outcome in enumerate(_share_out(todo, work, task), kept + 1):
        if isinstance(outcome, Exception):
            errors.append(outcome)
        else:
            size += outcome
        if progress is not None:
            progress(done, len(jobs), f"{len(errors)} failed" if errors else "")
    if errors:
        # The worst first: a whole file that decodes to something else, then what the system said.
        worst = max(errors, key=lambda e: (isinstance(e, MismatchError), isinstance(e, OSError)))
        kind = OSError if isinstance(worst, OSError) else type(worst)
        raise kind(f"{len(errors)} of {len(jobs)} failed, the others are there: {worst}")
    return Folder(written=len(todo), kept=kept, bytes=size, passed_over=[])


def _share_out(todo: Sequence[Job], work: Work, task: Task) -> Iterator[int | Exception]:
    """Yield for each job, as it is done, its bytes or why there are none."""

    def one(job: Job) -> int | Exception:
        try:
            job[1].parent.mkdir(parents=True, exist_ok=True)
            return work(*job)
        except (CodecError, MismatchError, OSError) as error:
            named = str(job[0]) in str(error)
            return error if named else _of_same_kind(error, f"{job[0]}: {error}")

    with _one_thread_each(), _stoppable(task.model) as stop:
        pool = ThreadPoolExecutor(task.workers)
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
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Stopped(Exception):  # noqa: N818 - no error
    """A thread was told to leave its picture."""


@contextmanager
def _stoppable(model: Model) -> Iterator[threading.Event]:
    """Yield an event after which the model's layers refuse to work."""
    stop = threading.Event()

    def check(*_: object) -> None:
        if stop.is_set():
            raise _Stopped

    handles = [module.register_forward_pre_hook(check) for module in model.modules()]
    try:
        yield stop
    finally:
        for handle in handles:
            handle.remove()
