"""The work of `pipeline compress` and `decompress`: one file, several, or a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.places import (
    Places,
    check_no_terminal,
    is_standard_output,
    picture_of,
    stream_of,
)
from pipeline.codec import CodecError, box
from pipeline.codec.files import (
    compress_file,
    decompress_file,
    is_decoded,
    is_made_of,
    is_stream,
    read_file,
)
from pipeline.codec.finding import Models, load_any
from pipeline.codec.folders import (
    NAMED,
    Task,
    Wanted,
    compress_all,
    compress_folder,
    decompress_all,
    decompress_folder,
    is_stream_of,
    passed_over,
)
from pipeline.codec.jobs import Conversion
from pipeline.codec.picture import Picture, read_picture
from pipeline.codec.rates import Limit, parse_quality, rate_of_quality
from pipeline.codec.stored import FILE_NAME
from pipeline.common.errors import UsageError
from pipeline.common.machine import worker_count
from pipeline.common.pictures import MAX_BYTES
from pipeline.common.progress import progress
from pipeline.common.scratch import cache_folder
from pipeline.common.sizes import parse_size
from pipeline.common.special import is_special, read_all
from pipeline.common.targets import check_target
from recipes.config.bundled import shipped

if TYPE_CHECKING:
    from pipeline.codec import Model
    from pipeline.codec.backends import AnyModel
    from pipeline.codec.config import Config
    from pipeline.codec.jobs import Folder


@dataclass(frozen=True)
class Options:
    """Options of both commands: memory in bytes, files at once, a device, what to replace."""

    memory: int
    workers: int | None
    device: str
    force: bool

    def at_once(self) -> int:
        """Return how many files to work on at once."""
        if self.workers:
            return self.workers
        return worker_count(self.memory) if self.device == "cpu" else self._beside_a_device()

    def _beside_a_device(self) -> int:
        """Return 2 where a GPU has the memory for two files, else 1.

        The CPU does the entropy coding; the GPU runs another file's networks meanwhile.
        """
        import torch

        try:
            device = torch.device(self.device)
            if device.type != "cuda" or not torch.cuda.is_available():
                return 1
            free, _ = torch.cuda.mem_get_info(device)
        except RuntimeError:  # no such device: loading the model reports it
            return 1
        return 2 if free >= 2 * self.memory else 1


@dataclass(frozen=True)
class Ask:
    """The quality, rate or size that a user asks for, as typed: at most one of these."""

    quality: str | None = None
    size: str | None = None
    bpp: float | None = None
    rate: float | None = None

    def check(self) -> None:
        """Raise `UsageError` if several are given, `CodecError` for an impossible value."""
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"--{given[0]} and --{given[1]} both set the file's size: give one")
        self.limit()
        if self.quality is not None:
            parse_quality(self.quality)

    def limit(self) -> Limit | None:
        """Return the largest file that is allowed, in bytes, or None if none was asked for."""
        if self.size is not None:
            return Limit(bytes=parse_size(self.size, "--size"))
        return None if self.bpp is None else Limit(bits=self.bpp)

    def rate_of(self, config: Config) -> float | None:
        """Return the rate that was asked for, as a number or as a quality; None if neither was."""
        if self.quality is not None:
            return rate_of_quality(config, parse_quality(self.quality))
        return self.rate


@dataclass(frozen=True)
class Shown:
    """A command's last message, as JSON and in words; with `aside`, it goes to standard error."""

    result: dict[str, Any]
    sentence: str
    aside: bool = False


def compress(
    asked: Places, options: Options, model: str, ask: Ask, profile: bool, verify: bool
) -> Shown:
    """Compress the pictures that were named, and return the message to show."""
    if asked.whole_folder is None and len(asked.sources) == 1:
        return _compress_one(asked, options, model, ask, profile, verify)
    jobs = [Conversion(source, stream_of(source, asked.folder)) for source in asked.sources]
    loaded = load(model, options.device)
    rate, limit = ask.rate_of(loaded.config), ask.limit()
    target = asked.folder or Path()
    task = Task(loaded, target, options.memory, options.at_once(), options.force)
    with progress("Compressing", "pictures") as report:
        if asked.whole_folder is not None:
            done = compress_folder(asked.whole_folder, task, profile, verify, rate, report, limit)
            return _shown_folder(target, done, "pictures")
        done = compress_all(jobs, task, profile, verify, rate, report, limit, by_stem=True)
    return _shown_files(jobs, done)


def decompress(
    asked: Places, options: Options, model: str | None, preview: bool, deep: bool
) -> Shown:
    """Decompress the files that were named, and return the message to show."""
    if asked.whole_folder is None and len(asked.sources) == 1:
        return _decompress_one(asked, options, model, preview, deep)
    jobs = [Conversion(source, picture_of(source, asked.folder)) for source in asked.sources]
    given = None if model is None else load(model, options.device)
    places = _where_models_are(asked.whole_folder or jobs[0].source.parent)
    target = asked.folder or Path()
    task = Task(
        given, target, options.memory, options.at_once(), options.force, places, options.device
    )
    with progress("Decompressing", "files") as report:
        if asked.whole_folder is not None:
            done = decompress_folder(asked.whole_folder, task, deep, report)
            return _shown_folder(target, done, "streams")
        done = decompress_all(jobs, task, deep, report)
    return _shown_files(jobs, done)


def load(model: str, device: str) -> Model:
    """Load any MODEL with torch."""
    from pipeline.codec import load_model

    return load_model(_file_of(model), device=device)


def _load_quick(model: str, device: str) -> AnyModel:
    """Load any MODEL for a single picture, which need not wait for torch."""
    file = Path(_file_of(model))
    return load_any(file / FILE_NAME if file.is_dir() else file, device, quick=True)


def _file_of(model: str) -> str | Path:
    """Return where a MODEL lies; a path that exists is found without tracking."""
    if box.is_meant(model):
        return box.box_model()
    if Path(model).exists():
        return Path(model)
    from pipeline.tracking import resolve_model

    return resolve_model(model)


def _compress_one(
    asked: Places, options: Options, model: str, ask: Ask, profile: bool, verify: bool
) -> Shown:
    (source,), named = asked.sources, asked.target
    target = named or stream_of(source, asked.folder)
    check_no_terminal(target)
    job = Conversion(source, target)
    check_target(
        target,
        "compress",
        is_stream if named else lambda _: is_stream_of(job),
        sources=[source],
        force=options.force,
        make_folder=asked.folder is not None,
    )
    picture = _read_picture(shipped(source), profile)
    loaded = _load_quick(model, options.device)
    rate, limit = ask.rate_of(loaded.config), ask.limit()
    if named is None and not is_special(source):
        known = None if limit else loaded.config.check_rate(rate)
        if Wanted(loaded, options.memory, profile, known, limit).is_at(target, source):
            return Shown({"file": str(target), "kept": True}, f"{target}: already there")
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
    with _about(source), _tiles("Compressing", searching=limit is not None) as tiles:
        done = compress_file(loaded, picture, target, verify, options.memory, rate, tiles, limit)
    words = f"{target}: {done['bytes']} bytes, {done['bpp']:.4f} bits per pixel"
    if done["rate"] is not None:
        words += f", rate {done['rate']:.3g}"
    words += f", found by {done['encodes']} encodes" if limit else ""
    words += ", verified" if verify else ""
    return Shown({"file": str(target), **done}, words, is_standard_output(target))


def _decompress_one(
    asked: Places, options: Options, model: str | None, preview: bool, deep: bool
) -> Shown:
    (source,), named = asked.sources, asked.target
    target = named or picture_of(source, asked.folder)
    check_no_terminal(target)
    check_target(
        target,
        "decompress",
        is_decoded,
        sources=[source],
        force=options.force,
        make_folder=asked.folder is not None,
    )
    data = read_file(source)
    if named is None and not is_special(target) and is_made_of(target, data, deep):
        return Shown({"file": str(target), "kept": True}, f"{target}: already there")
    given = None if model is None else _load_quick(model, options.device)
    models = Models(_where_models_are(source.resolve().parent), options.device, given, quick=True)
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
    with _about(source), _tiles("Decompressing") as tiles:
        done = decompress_file(
            models.of(data), data, target, preview, deep, options.memory, progress=tiles
        )
    words = f"{target}: {done['width']} x {done['height']} pixels"
    words += "" if done["complete"] else ", a preview: the file is truncated"
    return Shown({"file": str(target), **done}, words, is_standard_output(target))


def _read_picture(source: Path, profile: bool) -> Picture:
    """Read the picture in a file, a pipe or a device."""
    if not is_special(source):
        return read_picture(source, profile=profile)
    with _about(source):
        return read_picture(read_all(source, MAX_BYTES + 1), profile=profile)


def _where_models_are(source: Path) -> Sequence[Path]:
    """Return the folders to look for models in, after the package's own."""
    return [source, Path.cwd(), cache_folder("models")]


@contextmanager
def _tiles(title: str, searching: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows how many tiles of one picture are done."""
    count = 0

    def one_more(done: int, of: int) -> None:
        nonlocal count
        count += 1
        report(count, None, "")

    with progress(title, "tiles") as report:
        # The number of encodes that a search takes is not known beforehand.
        yield one_more if searching else lambda done, of: report(done, of, "")


@contextmanager
def _about(file: Path) -> Iterator[None]:
    """Put the file's name before a `CodecError` about its contents."""
    try:
        yield
    except CodecError as error:
        raise CodecError(f"{file}: {error}") from error


def _shown_folder(target: Path, done: Folder, wanted: str) -> Shown:
    sentence = f"{target}: {done['written']} written, {done['kept']} already there"
    if others := passed_over(done["passed_over"], wanted):
        sentence += f"; {others}"
    return Shown({"folder": str(target), **done}, sentence)


def _shown_files(jobs: Sequence[Conversion], done: Folder) -> Shown:
    files = [str(job.target) for job in jobs]
    sentence = f"{done['written']} written, {done['kept']} already there: "
    sentence += ", ".join(files[:NAMED]) + (", ..." if len(files) > NAMED else "")
    result: dict[str, Any] = {"files": files, **done}
    del result["passed_over"]
    return Shown(result, sentence)
