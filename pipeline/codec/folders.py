"""Pictures to `.cca` files and back, many at once: what becomes of each, and what is done already.

Running the same command again makes only what is missing, or made of something else: a stream says
which model, rate and tiles it is of, a decoded picture (by its mark) which stream and options.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from pipeline.codec.bitstream import Header, read_header, read_stream
from pipeline.codec.errors import CodecError, MismatchError
from pipeline.codec.files import (
    compress_file,
    decompress_file,
    is_decoded,
    is_made_of,
    is_stream,
    read_file,
)
from pipeline.codec.finding import Models
from pipeline.codec.jobs import Conversion, Folder, Kind, go_through
from pipeline.codec.memory import MAX_MEMORY, tile_size
from pipeline.codec.picture import read_picture
from pipeline.codec.rates import CLOSE, Limit
from pipeline.common.atomic import LONGEST_NAME
from pipeline.common.pictures import PictureError, find_files, find_pictures, is_picture, opened
from pipeline.common.pictures.reading import has_profile
from pipeline.common.progress import Progress
from pipeline.common.targets import TargetError

if TYPE_CHECKING:
    from pipeline.codec.backends import AnyModel
    from pipeline.codec.model import Model

STREAM = ".cca"
HEAD = 4096  # bytes of a stream that hold its header
NAMED = 10  # files that a sentence names


@dataclass(frozen=True)
class Task:
    """How to code each picture of a folder; `max_memory`, in bytes, is what each worker may take.

    Without a `model`, decompressing finds the one that each stream names, in `folders` or with
    the package. `force` replaces files that the command did not write.
    """

    model: Model | None
    target: Path
    max_memory: int = MAX_MEMORY
    workers: int = 1
    force: bool = False
    folders: Sequence[Path] = ()
    device: str = "cpu"


def compress_folder(
    source: Path,
    task: Task,
    profile: bool = True,
    verify: bool = False,
    rate: float | None = None,
    progress: Progress | None = None,
    limit: Limit | None = None,
) -> Folder:
    """Compress every picture under `source` to the same place under `task.target`, plus .cca.

    A stream that is there already is kept if it is whole, no older than its picture, and of the
    same model, rate (or within `limit`, and close to it), tiles and `profile`. All pictures are
    tried; if some can't be compressed, the error raised then names the first ones and their number:
    a `CodecError` where all were bad input, else what went wrong at run time.
    """
    found, others = find_pictures(source)
    if not found:
        raise CodecError(f"there are no pictures in {source}{_instead(others, source)}")
    # The whole name stays, so that a.png and a.jpg don't meet in a.cca.
    jobs = [Conversion(file, _beside(file, source, task.target, STREAM)) for file in found]
    # Streams of an earlier run, where they lie among the pictures, are no surprise.
    others = [file for file in others if file.suffix.lower() != STREAM]
    left = [str(file.relative_to(source)) for file in others]
    with _noting(left, "pictures"):
        done = compress_all(jobs, task, profile, verify, rate, progress, limit)
    return {**done, "passed_over": left}


def compress_all(
    jobs: Sequence[Conversion],
    task: Task,
    profile: bool = True,
    verify: bool = False,
    rate: float | None = None,
    progress: Progress | None = None,
    limit: Limit | None = None,
    by_stem: bool = False,
) -> Folder:
    """Compress the picture of each job to its target, whatever `task.target` is.

    Arguments and errors as those of `compress_folder`; a target that is no stream is refused
    before any work, unless `task.force`. With `by_stem` targets are called as their pictures are,
    without the ending, and a stream that may be of another picture is refused likewise.
    """
    model = task.model
    if model is None:
        raise CodecError("compressing takes a model")
    rate = None if limit is not None else model.config.check_rate(rate)
    wanted = Wanted(model, task.max_memory, profile, rate, limit)

    def work(job: Conversion) -> int:
        content = read_picture(job.source, profile=profile)
        made = compress_file(model, content, job.target, verify, task.max_memory, rate, limit=limit)
        return made["bytes"]

    kind = Kind(
        "compress",
        is_stream_of if by_stem else lambda job: is_stream(job.target),
        lambda job: wanted.is_at(job.target, job.source),
        work,
    )
    return go_through(jobs, kind, lambda _: [model], task.workers, progress, task.force)


def is_stream_of(job: Conversion) -> bool:
    """Whether the target is a stream that can only be of the job's picture, made earlier.

    Raises `TargetError` for a stream that may be of another one: one of another size, or where
    a picture of the same stem lies beside the source (photo.jpg, photo.png).
    """
    if not is_stream(job.target):
        return False
    other = next((file for file in _same_stem(job.source)), None)
    if other is None and _is_of_size(job.target, job.source):
        return True
    whose = "another picture" if other is None else str(other)
    raise TargetError(
        f"{job.target} is there already, and may be of {whose}: name the file to write, or replace "
        "it with --force"
    )


@dataclass(frozen=True)
class Wanted:
    """What a stream must be to be kept: its model and the options that made it."""

    model: AnyModel
    max_memory: int
    profile: bool
    rate: float | None
    limit: Limit | None

    def is_at(self, stream: Path, picture: Path) -> bool:
        """Whether the file `stream` is what compressing `picture` would make."""
        try:
            if not is_stream(stream) or not _is_newer(stream, picture):
                return False
            data = read_file(stream)
            header = read_stream(data).header
            return self._fits(header, len(data)) and self._is_of(header, picture)
        except (OSError, CodecError, PictureError):
            return False

    def _fits(self, header: Header, size: int) -> bool:
        config = self.model.config
        if header.fingerprint != self.model.fingerprint[: len(header.fingerprint)]:
            return False
        if header.tile != tile_size(config, header.height, header.width, self.max_memory):
            return False
        if self.limit is None:
            return header.rate == self.rate
        most = self.limit.of(header.height, header.width)
        best = config.rates is not None and header.rate == config.rates[1]
        return (CLOSE * most <= size or best) and size <= most

    def _is_of(self, header: Header, picture: Path) -> bool:
        """Whether size and profile of a stream are those that the picture asks for."""
        with opened(picture) as image:
            same = _same_size(header, image)
            return same and header.profile == (self.profile and has_profile(image))


def decompress_folder(
    source: Path, task: Task, deep: bool = False, progress: Progress | None = None
) -> Folder:
    """Decompress every .cca file under `source` to a PNG at the same place under `task.target`.

    a.png.cca and a.cca become a.png, a.jpg.cca becomes a.jpg.png. A picture that its mark says to
    be of this stream and `deep` is kept. Errors are raised as in `compress_folder`.
    """
    files, others = find_files(source, lambda name: Path(name).suffix.lower() == STREAM)
    if not files:
        raise CodecError(f"there are no .cca files in {source}{_instead(others, source)}")
    jobs = []
    for file in files:
        name = file.with_suffix("")
        plain = name.with_suffix("") if name.suffix.lower() == ".png" else name
        jobs.append(Conversion(file, _beside(plain, source, task.target, ".png")))
    # The pictures, where streams lie among them, are no surprise.
    others = [file for file in others if not is_picture(file.name)]
    left = [str(file.relative_to(source)) for file in others]
    with _noting(left, "streams"):
        done = decompress_all(jobs, task, deep, progress)
    return {**done, "passed_over": left}


def decompress_all(
    jobs: Sequence[Conversion], task: Task, deep: bool = False, progress: Progress | None = None
) -> Folder:
    """Decompress the stream of each job to its target, whatever `task.target` is.

    Arguments and errors as those of `decompress_folder`; a target that decoding did not write, or
    that was changed since, is refused before any work, unless `task.force`.
    """
    models = Models(task.folders, task.device, task.model)

    def load(todo: Iterable[Conversion]) -> Sequence[Model]:
        for job in todo:
            _try_to_load(models, job.source)
        return models.loaded()

    def work(job: Conversion) -> int:
        data = read_file(job.source)
        decompress_file(models.of(data), data, job.target, False, deep, task.max_memory)
        return len(data)

    kind = Kind(
        "decompress",
        lambda job: is_decoded(job.target),
        lambda job: job.target.is_file() and is_made_of(job.target, read_file(job.source), deep),
        work,
    )
    return go_through(jobs, kind, load, task.workers, progress, task.force)


def passed_over(left: Sequence[str], wanted: str) -> str:
    """Return which files of a folder were not taken, the first ones by name; "" for none."""
    if not left:
        return ""
    shown = ", ".join(left[:NAMED]) + (", ..." if len(left) > NAMED else "")
    return f"skipped {len(left)} that are no {wanted}, or hidden: {shown}"


@contextmanager
def _noting(left: Sequence[str], wanted: str) -> Iterator[None]:
    """Say on an error, too, which files of the folder were not taken."""
    try:
        yield
    except (CodecError, MismatchError, OSError) as error:
        if left:
            error.add_note(passed_over(left, wanted))
        raise


def _try_to_load(models: Models, stream: Path) -> None:
    """Load the model of a stream before there are threads; what fails is told with its file."""
    try:
        with stream.open("rb") as file:
            head = file.read(HEAD)
        read_header(head)
        models.of(head)
    except (OSError, CodecError):
        return


def _same_stem(picture: Path) -> Iterator[Path]:
    """Yield the other pictures beside `picture` that differ from it in their endings alone.

    Those that `decompress` wrote are no others.
    """
    for file in sorted(picture.parent.glob(f"{glob.escape(picture.stem)}.*")):
        other = file.stem == picture.stem and file.name != picture.name and is_picture(file.name)
        if other and not is_decoded(file):
            yield file


def _is_of_size(stream: Path, picture: Path) -> bool:
    try:
        with stream.open("rb") as file, opened(picture) as image:
            return _same_size(read_header(file.read(HEAD)), image)
    except (OSError, CodecError, PictureError):
        return False


def _same_size(header: Header, image: Image.Image) -> bool:
    """Whether a stream has a picture's size, on its side or not."""
    size = (header.width, header.height)
    return size in {(image.width, image.height), (image.height, image.width)}


def _beside(file: Path, source: Path, target: Path, suffix: str) -> Path:
    relative = file.relative_to(source)
    if len(os.fsencode(relative.name + suffix)) > LONGEST_NAME:  # then its own ending makes room
        return target / relative.with_suffix(suffix)
    return target / relative.with_name(relative.name + suffix)


def _is_newer(file: Path, than: Path) -> bool:
    """Whether `file` was written after `than` was changed, or put in place by another name."""
    status, other = file.stat(), than.stat()
    last = max(status.st_mtime_ns, status.st_ctime_ns)
    return status.st_mtime_ns >= other.st_mtime_ns and last >= other.st_ctime_ns


def _instead(others: Sequence[Path], source: Path) -> str:
    """Return what there is in place of what was looked for, if anything."""
    if not others:
        return ""
    return f": {len(others)} other files, {others[0].relative_to(source)} the first"
