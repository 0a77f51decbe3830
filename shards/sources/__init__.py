"""Where pictures come from: what a user names on the command line, as sources to list and read.

A kind of source is a class with the methods of `base.Source`. Files are told by their endings
(`FILES`), libraries and patterns by the word before a colon (`PREFIXES`), folders by what is in
them (`_folder`, and `_on_store` for those at a URL). `KINDS` tells users what there is.
"""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.errors import ShardsError
from shards.patterns import expand_braces
from shards.sources.archive import TarSource
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
from shards.sources.packed import ENDINGS as PACKED
from shards.sources.packed import is_packed, place_of, unpacked
from shards.sources.pathlist import ListSource
from shards.sources.places import is_remote
from shards.sources.store_folder import StoreFolder
from shards.sources.zips import ZipSource
from shards.store import AT_FIRST, remote, retried

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
    "a folder, .tar, .tar.gz (.xz, .bz2, .zst), .zip, .parquet or list of paths (.txt), "
    "hf:NAME[:SPLIT], or shards:PATTERN; paths or URLs"
)


THREADS_OF_STORES = 16


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
            sources += [_entered(one, scratch, stack) for one in _open(_bare(spec))]
        yield sources


def _bare(spec: str) -> str:
    """Return a local file's URL as its path."""
    return spec.split("://", 1)[1] if spec.startswith(("file://", "local://")) else spec


def _entered(source: Source, scratch: Path | None, stack: contextlib.ExitStack) -> Source:
    """Return a source that can be entered anywhere: a compressed tar is unpacked first."""
    if not isinstance(source, TarSource) or not is_packed(source.path, not source.samples):
        return source
    file = stack.enter_context(unpacked(source.path, scratch))
    return replace(source, place=place_of(file))


def _open(spec: str) -> list[Source]:
    prefix, _, rest = spec.partition(":")
    if prefix in PREFIXES:
        return PREFIXES[prefix](rest)
    if is_remote(spec):
        return [_on_store(spec)]
    path = Path(spec)
    if not path.exists():
        raise ShardsError(f"there is no source {spec}: name {KINDS}")
    if path.is_dir():
        return [_folder(path)]
    return [_file(spec)]


def _file(spec: str) -> Source:
    name = spec.lower()
    for endings, source in FILES.items():
        if name.endswith(endings):
            return source(spec)
    raise ShardsError(f"can't read pictures from {spec}: name {KINDS}")


def _on_store(url: str) -> Source:
    """Return the source at a URL of a store: a file by its ending, or a folder."""
    fs = remote(url)
    try:
        info = retried(lambda: fs.info(url), url, AT_FIRST)
    except FileNotFoundError:
        raise ShardsError(f"there is no source {url}: name {KINDS}") from None
    if info["type"] != "directory":
        return _file(url)
    names = _names_on_store(fs, url)
    tables = sorted(name for name in names if name.endswith(".parquet") and name[0] != ".")
    if tables and not any(is_picture(name) or is_description(name) for name in names):
        return _parquet([f"{url.rstrip('/')}/{name}" for name in tables], url.rpartition("/")[2])
    return StoreFolder(url)


def _names_on_store(fs: Any, url: str) -> set[str]:
    entries = retried(lambda: fs.ls(url, detail=True), url, AT_FIRST)
    names = {one["name"].rpartition("/")[2] for one in entries if one["type"] != "directory"}
    return set(without_shards(names))


def reading_threads(sources: Sequence[Source]) -> int:
    """Return how many threads read pictures of `sources` best: each request to a store waits."""
    return THREADS_OF_STORES if any(is_remote(source.origin) for source in sources) else 1


def read_anywhere(sources: Sequence[Source]) -> bool:
    """Whether other processes can read `sources` too: what is in memory is this one's alone."""
    return not any(source.origin.startswith("memory://") for source in sources)


def expand(pattern: str) -> list[str]:
    """Return the files that `pattern` means: braces {000..012} and {a,b}, then * and ?; sorted.

    Raises:
        ShardsError: there are none, or one is missing.
    """
    paths = []
    for one in expand_braces(pattern):
        found = _matching(one)
        if not found:
            raise ShardsError(f"shards {one} are not there: check the pattern {pattern}")
        paths += found
    return paths


def _matching(pattern: str) -> list[str]:
    if not is_remote(pattern):
        if Path(pattern).is_file():  # a name may hold a bracket
            return [pattern]
        return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - a pattern, not a folder's
    fs = remote(pattern)
    found = retried(lambda: fs.glob(pattern), pattern, AT_FIRST)
    return sorted(fs.unstrip_protocol(path) for path in found)


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


def _one_parquet(path: str) -> Source:
    return _parquet([path], path.rpartition("/")[2])


def _shards(pattern: str) -> list[Source]:
    return [TarSource(path, samples=True) for path in expand(_bare(pattern))]


# What reads a file, a path or URL, by its endings in lower case.
FILES: dict[tuple[str, ...], Callable[[str], Source]] = {
    (".tar", *PACKED): TarSource,
    (".zip",): ZipSource,
    (".parquet",): _one_parquet,
    (".txt", ".lst"): ListSource,
}
# What reads PREFIX:REST, which is neither a path nor a URL; it is given REST.
PREFIXES: dict[str, Callable[[str], list[Source]]] = {
    "hf": lambda rest: [_dataset(rest)],
    "shards": _shards,
}
