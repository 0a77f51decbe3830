"""WebDataset tars that others made: named by a pattern, indexed on first use."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from pipeline.common.scratch import cache_folder
from shards.errors import ShardsError
from shards.manifest import Manifest, ShardInfo
from shards.patterns import expand_braces
from shards.reading.cache import Cache, CacheFolder, Wanted, check_room
from shards.reading.corpus import Corpus, FileCorpus
from shards.reading.fetch import Fetcher
from shards.reading.files import CachedFiles, Files, LocalFiles
from shards.reading.index import ShardTable
from shards.reading.tars import kept, tar_table

SPECIAL = re.compile(r"[*?\[{]")


def is_pattern(dest: str | Path) -> bool:
    """Whether `dest` names tars themselves, not a folder that `pipeline shard` wrote."""
    return str(dest).endswith(".tar")


def open_tars(pattern: str | Path, cache: Cache, block: int) -> Corpus:
    """Open the tars of a pattern, `data/train-{000000..000099}.tar` or `s3://bucket/part-*.tar`.

    The index of each is made on first use and kept: beside a tar in a folder that can be written
    to, in the cache otherwise. A tar that changes is indexed anew.

    Raises:
        ShardsError: no tar matches, one is damaged, or none holds a picture.
    """
    text = str(pattern)
    root, names = _local(text) if "://" not in text else _remote(text, cache)
    tars = _Tars(root, names, cache, block)
    infos = tuple(
        ShardInfo(name.removesuffix(".tar"), len(tars.table(name)), size, "")
        for name, size in names.items()
    )
    total = sum(info.samples for info in infos)
    if not total:
        raise ShardsError(f"the tars {pattern} hold no pictures: name WebDataset shards of images")
    manifest = Manifest("tars", 0, {}, "", infos, total, total, 0)
    if "://" in text:
        check_room(cache, manifest, block)
    return FileCorpus(text, manifest, tars.files, tars, block)


class _Tars:
    """Tars under one root, by name, and their tables."""

    def __init__(self, root: str, names: dict[str, int], cache: Cache, block: int) -> None:
        self.root, self.names, self.cache = root, names, cache
        if "://" in root:
            folder = CacheFolder(cache, Fetcher(root, cache.patience))
            wanted = {name: Wanted(name, size) for name, size in names.items()}
            self.files: Files = CachedFiles(folder, wanted, kept=block + 1)
        else:
            self.files = LocalFiles(Path(root))

    def __call__(self, info: ShardInfo) -> ShardTable:
        """Return a shard's table."""
        return self.table(info.tar)

    def table(self, name: str) -> ShardTable:
        """Return the table of a tar, made on first use."""
        path, stamp = self._index(name)
        return kept(path, stamp, lambda: self._walk(name))

    def _walk(self, name: str) -> ShardTable:
        with self.files.open(name) as file:
            return tar_table(file, self.files.where(name))

    def _index(self, name: str) -> tuple[Path, str]:
        """Return the file of a tar's index, and the stamp that it must hold."""
        if isinstance(self.files, CachedFiles):
            return self.files.index(name), str(self.names[name])
        tar = Path(self.root) / name
        status = tar.stat()
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        if os.access(tar.parent, os.W_OK):
            return tar.with_name(f".{tar.name}.index"), stamp
        folder = (self.cache.folder or cache_folder("shards")) / "index"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{tar.resolve()}.index".replace("/", "%"), stamp


def _local(pattern: str) -> tuple[str, dict[str, int]]:
    root = _root(pattern)

    def find(one: str) -> list[str]:
        here = sorted(Path(root).glob(os.path.relpath(one, root)))
        return [str(path.relative_to(root)) for path in here]

    return root, {name: (Path(root) / name).stat().st_size for name in _matches(pattern, find)}


def _remote(pattern: str, cache: Cache) -> tuple[str, dict[str, int]]:
    root = _root(pattern)
    fetcher = Fetcher(root, cache.patience)
    names = _matches(pattern, lambda one: fetcher.glob(one.removeprefix(root).lstrip("/")))
    return root, {name: fetcher.size(name) for name in names}


def _matches(pattern: str, find: Callable[[str], list[str]]) -> list[str]:
    found: list[str] = []
    for one in expand_braces(pattern):
        here = find(one)
        if not here:
            raise ShardsError(f"no tar matches {one}: name tars that are there, as data/*.tar")
        found += here
    return list(dict.fromkeys(found))


def _root(pattern: str) -> str:
    """Return the folder before the first part of the pattern that stands for several."""
    special = SPECIAL.search(pattern)
    fixed = pattern[: special.start()] if special else pattern
    return fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else ".")
