"""Where pictures come from: what a user names on the command line, as sources to list and read."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from shards.errors import ShardsError
from shards.patterns import expand_braces
from shards.sources.archive import TarSource, ZipSource, place_of, unpacked
from shards.sources.base import (
    Entry,
    Listed,
    Reader,
    Rows,
    Sample,
    Source,
    UnreadableError,
    is_picture,
)
from shards.sources.captions import is_description
from shards.sources.folder import FolderSource, without_shards
from shards.sources.pathlist import ListSource

__all__ = [
    "Entry",
    "Listed",
    "Reader",
    "Rows",
    "Sample",
    "Source",
    "UnreadableError",
    "open_sources",
]

KINDS = (
    "a folder, .tar, .tar.gz, .zip, .parquet or list of paths (.txt), "
    "hf:NAME[:SPLIT], or shards:PATTERN"
)
PACKED = (".tar.gz", ".tgz")


@contextlib.contextmanager
def open_sources(specs: Sequence[str], scratch: Path | None = None) -> Iterator[list[Source]]:
    """Yield the sources that `specs` name; what had to be unpacked for them vanishes afterwards.

    Args:
        specs: what a user names, see `KINDS`.
        scratch: folder that compressed tars are unpacked in (default: the system's).

    Raises:
        ShardsError: one is not there, or is nothing that pictures are read from.
    """
    if not specs:
        raise ShardsError(f"no source given: name {KINDS}")
    with contextlib.ExitStack() as stack:
        sources: list[Source] = []
        for spec in specs:
            if spec.lower().endswith(PACKED) and Path(spec).is_file():
                file = stack.enter_context(unpacked(spec, scratch))
                sources.append(TarSource(spec, place=place_of(file)))
            else:
                sources.extend(_open(spec))
        yield sources


def _open(spec: str) -> list[Source]:
    kind, _, rest = spec.partition(":")
    if kind == "hf":
        return [_dataset(rest)]
    if kind == "shards":
        return [TarSource(path, samples=True) for path in expand(rest)]
    path = Path(spec)
    if not path.exists():
        raise ShardsError(f"source {spec} is not there: name {KINDS}")
    if path.is_dir():
        return [_folder(path)]
    kinds = {".tar": TarSource, ".zip": ZipSource, ".txt": ListSource, ".lst": ListSource}
    if path.suffix.lower() in kinds:
        return [kinds[path.suffix.lower()](spec)]
    if path.suffix.lower() == ".parquet":
        return [_parquet([spec], path.name)]
    raise ShardsError(f"source {spec} is no kind that is known: name {KINDS}")


def expand(pattern: str) -> list[str]:
    """Return the files that `pattern` means: braces {000..012} and {a,b}, then * and ?; sorted.

    Raises:
        ShardsError: there are none, or one is missing.
    """
    paths = []
    for one in expand_braces(pattern):
        found = sorted(glob.glob(one, recursive=True))  # noqa: PTH207 - a pattern, not a folder's
        if not found:
            raise ShardsError(f"shards {one} are not there: check the pattern {pattern}")
        paths += found
    return paths


def _folder(path: Path) -> Source:
    """Return the source that a folder is: saved dataset, Parquet files, or pictures.

    `metadata.parquet` beside pictures, or above folders, describes them; tables of finished shards
    are nobody's pictures.
    """
    names = set(without_shards({entry.name for entry in path.iterdir()}))
    if names & {"state.json", "dataset_dict.json"}:
        return _dataset(str(path))
    tables = sorted(name for name in names if name.endswith(".parquet") and name[0] != ".")
    pictures = any(is_picture(name) for name in names)
    if len(tables) == 1 and is_description(tables[0]):
        pictures = pictures or any((path / name).is_dir() for name in names)
    if tables and not pictures:
        return _parquet([str(path / name) for name in tables], path.resolve().name)
    return FolderSource(str(path))


def _dataset(spec: str) -> Source:
    from shards.sources.dataset import open_dataset

    name, colon, split = spec.rpartition(":")
    if not colon or Path(spec).exists():
        name, split = spec, ""
    return open_dataset(name, split or None)


def _parquet(paths: list[str], label: str) -> Source:
    from shards.sources.dataset import open_parquet

    return open_parquet(paths, label)
