"""The arguments IN... [OUT] of `compress` and `decompress`: which file becomes which."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UsageError
from pipeline.common.special import STANDARD, descriptor_of, is_special, mode_of

STDIN, STDOUT = Path("/dev/stdin"), Path("/dev/stdout")
STREAM = ".cca"


@dataclass(frozen=True)
class Places:
    """The files to read, and where their results go.

    `target` is the result of a single source; if None, it is named after its source. `folder` is
    where all results go; if None, each goes beside its source.
    """

    sources: tuple[Path, ...]
    target: Path | None = None
    folder: Path | None = None

    @property
    def whole_folder(self) -> Path | None:
        """The folder whose files are all processed, if one was named."""
        return self.sources[0] if _is_folder(self.sources[0]) else None


def places(words: Sequence[str], out_dir: Path | None, is_source: Callable[[Path], bool]) -> Places:
    """Divide IN... [OUT] into sources and a target; `is_source` tells whether the last is a source.

    Raises `UsageError` if that is ambiguous, or if several files would become one.
    """
    *first, last = words
    if out_dir is not None and mode_of(out_dir) and not _is_folder(out_dir):
        raise UsageError(f"{out_dir} is a file: give --out-dir a folder")
    if out_dir is not None or not first:
        return _checked(Places(tuple(map(_source, words)), None, out_dir))
    if len(first) == 1 and _is_folder(Path(first[0])):
        if mode_of(Path(last)) and not _is_folder(Path(last)):
            raise UsageError(f"{last} is a file: a folder's files go to a folder")
        return Places((Path(first[0]),), None, Path(last))
    if last != STANDARD and is_source(Path(last)):
        return _checked(Places(tuple(map(_source, words))))
    sources = tuple(map(_source, first))
    if last.endswith("/") or (last != STANDARD and _is_folder(Path(last))):
        raise UsageError(f"{last} is a folder: name the file to write, or give it by --out-dir")
    if len(sources) > 1:
        raise UsageError(
            f"{len(sources)} files can't all become {last}: name the folder to write by --out-dir"
        )
    return _checked(Places(sources, STDOUT if last == STANDARD else Path(last)))


def is_picture_file(path: Path) -> bool:
    """Tell whether the last argument of `compress` is a source: a file that is not named .cca."""
    return _is_file(path) and path.suffix.lower() != STREAM


def is_stream_file(path: Path) -> bool:
    """Tell whether the last argument of `decompress` is a source: a file with a stream's ending."""
    return _is_file(path) and path.suffix.lower() == STREAM


def stream_of(picture: Path, folder: Path | None) -> Path:
    """Return where `compress` puts a picture's stream: photo.jpg becomes photo.cca."""
    from pipeline.common.pictures import is_picture

    if is_special(picture):
        return STDOUT
    plain = picture.stem if is_picture(picture.name) else picture.name
    return (folder or picture.parent) / f"{plain}{STREAM}"


def picture_of(stream: Path, folder: Path | None) -> Path:
    """Return where `decompress` puts a stream's picture: photo.cca becomes photo.png.

    So does photo.png.cca, while photo.jpg.cca becomes photo.jpg.png.
    """
    if is_special(stream):
        return STDOUT
    plain = Path(stream.stem if stream.suffix.lower() == STREAM else stream.name)
    name = plain.stem if plain.suffix.lower() == ".png" else plain.name
    return (folder or stream.parent) / f"{name}.png"


def check_stream_name(target: Path) -> None:
    """Raise `UsageError` for a stream whose name would end like a picture's."""
    from pipeline.common.pictures import ENDINGS

    if not is_special(target) and target.suffix[1:].lower() in ENDINGS:
        raise UsageError(
            f"{target} has the ending of a picture, and compress writes {STREAM} files: "
            f"name it {target.with_suffix(STREAM).name}, say"
        )


def is_standard_output(target: Path) -> bool:
    """Tell whether `target` is standard output: then messages must go elsewhere."""
    return descriptor_of(target) == 1


def check_no_terminal(target: Path) -> None:
    """Raise `UsageError` if a file would be printed on a terminal."""
    descriptor = descriptor_of(target)
    if descriptor is not None and os.isatty(descriptor):
        raise UsageError("standard output is a terminal: send it to a file or a pipe")


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(mode_of(path)) and not is_special(path)


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(mode_of(path))


def _source(word: str) -> Path:
    return STDIN if word == STANDARD else Path(word)


def _checked(asked: Places) -> Places:
    folders = [source for source in asked.sources if _is_folder(source)]
    if folders and len(asked.sources) > 1:
        raise UsageError(f"{folders[0]} is a folder: give a folder alone, without other files")
    if folders and asked.folder is None:
        raise UsageError(f"{folders[0]} is a folder: name the folder to write after it")
    pipes = [source for source in asked.sources if is_special(source)]
    if pipes and asked.folder is not None:
        raise UsageError("a pipe has no file name to use in a folder: leave --out-dir out")
    if pipes and len(asked.sources) > 1:
        raise UsageError(
            f"{pipes[0]} is a pipe or a device, which is worked on alone: its result goes to "
            "standard output, or to a file that the last argument names"
        )
    return asked
