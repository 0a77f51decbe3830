"""Compresses many pictures to `.cca` files and back, and knows which files are done already.

Running the same command again makes only files that are missing or have changed inputs: a stream
states its model, rate and tiles, and a decoded picture states, in its mark, its stream and options.
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
NAMED = 10  # files that a message names


@dataclass(frozen=True)
class Task:
    """How to code each picture of a folder; each worker may take `max_memory` bytes.

    Without a `model`, decompressing finds the model that each stream names, in the package or in
    `folders`. `force` replaces files that the command did not write.
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

    An existing stream is kept if it is whole, no older than its picture, and has the same model,
    rate (or a size within `limit` and close to it), tiles and `profile`. All pictures are tried. If
    some can't be compressed, an error at the end tells their number and names the first ones: a
    `CodecError` if all of them were bad input, else the error of a failure at run time.
    """
    files, others = find_pictures(source)
    if not files:
        raise CodecError(f"there are no pictures in {source}{_instead(others, source)}")
    # The whole name is kept, so that a.png and a.jpg don't both become a.cca.
    jobs = [Conversion(file, _beside(file, source, task.target, STREAM)) for file in files]
    # Streams of an earlier run may lie among the pictures and need no mention.
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

    Arguments and errors are those of `compress_folder`. A target that is not a stream is refused
    before any work, unless `task.force`. With `by_stem`, targets are named after their pictures
    without the ending, and a stream that may be of another picture is refused too.
    """
    model = task.model
    if model is None:
        raise CodecError("compressing takes a model")
    rate = None if limit is not None else model.config.check_rate(rate)
    wanted = Wanted(model, task.max_memory, profile, rate, limit)

    def work(job: Conversion) -> int:
        content = read_picture(job.source, profile=profile)
        done = compress_file(model, content, job.target, verify, task.max_memory, rate, limit=limit)
        return done["bytes"]

    kind = Kind(
        "compress",
        is_stream_of if by_stem else lambda job: is_stream(job.target),
        lambda job: wanted.is_at(job.target, job.source),
        work,
    )
    return go_through(jobs, kind, lambda _: [model], task.workers, progress, task.force)


def is_stream_of(job: Conversion) -> bool:
    """Tell whether the target is an earlier stream that can only be of the job's picture.

    Raises `TargetError` for a stream that may be of another picture: it has another size, or a
    picture of the same stem lies beside the source (photo.jpg, photo.png).
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
    """What an existing stream must match to be kept: the model and the options."""

    model: AnyModel
    max_memory: int
    profile: bool
    rate: float | None
    limit: Limit | None

    def is_at(self, stream: Path, picture: Path) -> bool:
        """Tell whether the file `stream` is what compressing `picture` would make."""
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
        """Tell whether a stream has the size and the profile of the picture."""
        with opened(picture) as image:
            same = _same_size(header, image)
            return same and header.profile == (self.profile and has_profile(image))


def decompress_folder(
    source: Path, task: Task, deep: bool = False, progress: Progress | None = None
) -> Folder:
    """Decompress every .cca file under `source` to a PNG at the same place under `task.target`.

    a.png.cca and a.cca become a.png, a.jpg.cca becomes a.jpg.png. A picture whose mark states this
    stream and `deep` is kept. Errors are raised as in `compress_folder`.
    """
    files, others = find_files(source, lambda name: Path(name).suffix.lower() == STREAM)
    if not files:
        raise CodecError(f"there are no .cca files in {source}{_instead(others, source)}")
    jobs = []
    for file in files:
        name = file.with_suffix("")
        plain = name.with_suffix("") if name.suffix.lower() == ".png" else name
        jobs.append(Conversion(file, _beside(plain, source, task.target, ".png")))
    # Pictures may lie among the streams and need no mention.
    others = [file for file in others if not is_picture(file.name)]
    left = [str(file.relative_to(source)) for file in others]
    with _noting(left, "streams"):
        done = decompress_all(jobs, task, deep, progress)
    return {**done, "passed_over": left}


def decompress_all(
    jobs: Sequence[Conversion], task: Task, deep: bool = False, progress: Progress | None = None
) -> Folder:
    """Decompress the stream of each job to its target, whatever `task.target` is.

    Arguments and errors are those of `decompress_folder`. A target that decoding did not write, or
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
    """Describe the files of a folder that were skipped, and name the first ones; "" for none."""
    if not left:
        return ""
    shown = ", ".join(left[:NAMED]) + (", ..." if len(left) > NAMED else "")
    return f"skipped {len(left)} that are no {wanted}, or hidden: {shown}"


@contextmanager
def _noting(left: Sequence[str], wanted: str) -> Iterator[None]:
    """Name the skipped files of the folder in a note on an error, too."""
    try:
        yield
    except (CodecError, MismatchError, OSError) as error:
        if left:
            error.add_note(passed_over(left, wanted))
        raise


def _try_to_load(models: Models, stream: Path) -> None:
    """Load a model before threads start; a failure is reported later, with its file."""
    try:
        with stream.open("rb") as file:
            head = file.read(HEAD)
        read_header(head)
        models.of(head)
    except (OSError, CodecError):
        return


def _same_stem(picture: Path) -> Iterator[Path]:
    """Yield the pictures beside `picture` whose names differ from it only in the ending.

    Pictures that `decompress` wrote are left out.
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
    """Tell whether a stream has a picture's size, upright or on its side."""
    size = (header.width, header.height)
    return size in {(image.width, image.height), (image.height, image.width)}


def _beside(file: Path, source: Path, target: Path, suffix: str) -> Path:
    relative = file.relative_to(source)
    if len(os.fsencode(relative.name + suffix)) > LONGEST_NAME:  # too long: drop its own ending
        return target / relative.with_suffix(suffix)
    return target / relative.with_name(relative.name + suffix)


def _is_newer(file: Path, than: Path) -> bool:
    """Tell whether `file` was written after `than` was last changed or renamed."""
    status, other = file.stat(), than.stat()
    last = max(status.st_mtime_ns, status.st_ctime_ns)
    return status.st_mtime_ns >= other.st_mtime_ns and last >= other.st_ctime_ns


def _instead(others: Sequence[Path], source: Path) -> str:
    """Describe the files that are there instead of those looked for, if any."""
    if not others:
        return ""
    return f": {len(others)} other files, {others[0].relative_to(source)} the first"
