"""A folder of pictures to a folder of `.cca` files: in parallel, and resumable."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

import torch
from PIL import Image

from pipeline.codec.bitstream import read_stream
from pipeline.codec.errors import CodecError
from pipeline.codec.files import compress_file
from pipeline.codec.model import CCAModel
from pipeline.codec.picture import read_picture
from pipeline.codec.storage import load_model

Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Task:
    """How to compress each picture: all of it can be sent to another process."""

    model: Path
    target: Path
    profile: bool
    verify: bool
    max_memory: int
    device: str
    rate: float | None = None


class Folder(TypedDict):
    """What compressing a folder came to."""

    written: int
    kept: int
    bytes: int


def compress_folder(
    source: Path, task: Task, workers: int = 1, progress: Progress | None = None
) -> Folder:
    """Compress every picture under `source` to the same place under `task.target`, plus .cca.

    A file that is there already, whole and of the same model and rate, is kept. All pictures are
    tried; if some can't be, a `CodecError` then names the first and their number.
    """
    pictures = sorted(_pictures(source))
    if not pictures:
        raise CodecError(f"there are no pictures in {source}")
    model = load_model(task.model)
    rate = model.config.check_rate(task.rate)
    names = {picture: _target(source, picture, task.target) for picture in pictures}
    kept = [picture for picture in pictures if _is_done(names[picture], model, rate)]
    todo = [(p, names[p]) for p in pictures if p not in set(kept)]
    errors: list[str] = []
    size, done = 0, len(kept)
    for outcome in _run(todo, task, workers):
        done += 1
        if isinstance(outcome, str):
            errors.append(outcome)
        else:
            size += outcome
        if progress is not None:
            progress(done, len(pictures), f"{len(errors)} refused" if errors else "")
    if errors:
        raise CodecError(f"{len(errors)} of {len(pictures)} pictures were refused: {errors[0]}")
    return Folder(written=len(todo), kept=len(kept), bytes=size)


def _pictures(source: Path) -> Iterator[Path]:
    suffixes = Image.registered_extensions()
    for path in source.rglob("*"):
        if path.suffix.lower() in suffixes and path.is_file() and not path.name.startswith("."):
            yield path


def _target(source: Path, picture: Path, target: Path) -> Path:
    # The whole name stays, so that a.png and a.jpg don't meet in a.cca.
    relative = picture.relative_to(source)
    return target / relative.with_name(relative.name + ".cca")


def _is_done(file: Path, model: CCAModel, rate: float | None) -> bool:
    try:
        header = read_stream(file.read_bytes()).header
    except (OSError, CodecError):
        return False
    return (header.fingerprint, header.rate) == (model.fingerprint[:16], rate)


def _run(todo: list[tuple[Path, Path]], task: Task, workers: int) -> Iterator[int | str]:
    """Yield for each picture its bytes, or the sentence that says why it was refused."""
    if workers == 1:
        yield from (_one(picture, target, task) for picture, target in todo)
        return
    # Spawned, for a forked process can't use torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads,
                             initargs=(1,)) as pool:  # fmt: skip
        futures: list[Future[int | str]] = [pool.submit(_one, p, t, task) for p, t in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one(picture: Path, target: Path, task: Task) -> int | str:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        model = _model(task.model, task.device)
        content = read_picture(picture, profile=task.profile)
        result = compress_file(model, content, target, task.verify, task.max_memory, task.rate)
    except (ValueError, OSError) as error:
        return str(error)
    return result["bytes"]


@cache
def _model(path: Path, device: str) -> CCAModel:
    return load_model(path, device=device)
