"""Brings together the files that belong to one picture, however many an archive holds.

A caption may stand anywhere in an archive. Files are kept in memory up to a number, beyond it in
a file without a name, in parts by a hash of their stem: a part at a time is read back.
"""

from __future__ import annotations

import pickle
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from shards.sources.base import Part, encode_path
from shards.sources.files import SourceFile
from shards.sources.tarwalk import followed, parents

IN_MEMORY = 20_000  # files, about 10 MB
PARTS = 128


class Gathering:
    """Files of one archive, taken one by one and given back in groups.

    Files whose paths agree up to the first dot of the name are in one group, in the order in which
    they were added. `tell` is called with how many more were added.
    """

    def __init__(
        self,
        scratch: Path | None = None,
        tell: Callable[[int], None] = lambda more: None,
        in_memory: int | None = None,
    ) -> None:
        self._scratch, self._tell, self._in_memory = scratch, tell, in_memory or IN_MEMORY
        self._waiting: list[SourceFile] = []
        self._file: IO[bytes] | None = None
        self._places: list[list[tuple[int, int]]] = [[] for _ in range(PARTS)]

    def add(self, file: SourceFile) -> None:
        """Take a file."""
        self._waiting.append(file)
        if len(self._waiting) >= self._in_memory:
            self._spill()

    def groups(self) -> Iterator[list[SourceFile]]:
        """Yield all files, group by group; may be called again."""
        if self._file is None:
            yield self._waiting
            return
        if self._waiting:
            self._spill()
        for places in self._places:
            part: list[SourceFile] = []
            for place, size in places:
                self._file.seek(place)
                # Written by this process into a file that no other one can open.
                part += pickle.loads(self._file.read(size))
            yield part

    def close(self) -> None:
        """Forget all files."""
        self._waiting = []
        if self._file is not None:
            self._file.close()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - closed by close()
        parts: list[list[SourceFile]] = [[] for _ in range(PARTS)]
        for file in self._waiting:
            parts[zlib.crc32(_stem(file.path)) % PARTS].append(file)
        self._file.seek(0, 2)
        for places, part in zip(self._places, parts, strict=True):
            data = pickle.dumps(part, pickle.HIGHEST_PROTOCOL)
            places.append((self._file.tell(), len(data)))
            self._file.write(data)
        self._tell(len(self._waiting))
        self._waiting = []


def add_linked(files: Gathering, links: Mapping[str, str], mtime: int) -> None:
    """Add the files that `links` lead to, under the links' names; links to folders give all below.

    `links` has the target of each link. As in a folder, one that leads nowhere is a file that is
    not there, and one to a folder above itself gives nothing.
    """
    if not links:
        return
    leading: dict[str, list[str]] = {}
    for link in links:
        leading.setdefault(followed(links, link), []).append(link)
    found: dict[str, Part] = {}
    folders: set[str] = set()
    below: list[SourceFile] = []
    for group in files.groups():
        for file in group:
            for link in leading.get(file.path, ()):
                found[link] = file.part
            below += _below(file, leading, folders)
    gone = Part(b"", 0, -1)
    ends = [_placed(link, found.get(link, gone), mtime) for link in links if link not in folders]
    for file in ends:
        below += _below(file, leading, folders)
    for file in (*ends, *below):
        files.add(file)


def _below(
    file: SourceFile, leading: Mapping[str, list[str]], folders: set[str]
) -> Iterator[SourceFile]:
    """Yield `file` under each link to a folder that it is in; `folders` takes those links."""
    for folder in parents(file.path):
        for link in leading.get(folder, ()):
            folders.add(link)
            if not link.startswith(f"{folder}/"):
                yield _placed(link + file.path[len(folder) :], file.part, file.mtime)


def _placed(path: str, part: Part, mtime: int) -> SourceFile:
    return SourceFile(path, Part(encode_path(path), part.offset, part.size), mtime)


def _stem(path: str) -> bytes:
    folder, _, name = path.rpartition("/")
    return encode_path(f"{folder}/{name.partition('.')[0]}")
