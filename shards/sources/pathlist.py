"""A text file that lists pictures, a path or URL a line, relative to the file's own folder."""

from __future__ import annotations

import codecs
import os
import posixpath
import stat
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np

from shards.errors import ShardsError
from shards.sources.base import (
    Entry,
    Listed,
    Part,
    Rows,
    Sample,
    clean_key,
    clean_text,
    decode_path,
    encode_path,
    stem_and_ending,
)
from shards.sources.files import read_parts
from shards.sources.folder import FolderReader
from shards.sources.places import ReadAhead, is_remote, open_place, time_of
from shards.sources.store_folder import read_object
from shards.store import remote, retried

THREADS = 16  # that ask stores for sizes
TOGETHER = 1024  # paths whose files are looked at in one go
CHUNK = 1 << 20
WEB = ("http://", "https://", "ftp://")
Status = tuple[int, int]  # size in bytes (-1: not there), time of change in ns


@dataclass(frozen=True)
class ListSource:
    """The pictures whose paths the text file `path` lists. Empty and repeated lines are nothing.

    `path` may be a URL, and so may each line; but addresses of the web are no files: such pictures
    are missing.
    """

    path: str

    @property
    def name(self) -> str:
        """The list's file name."""
        return clean_text(self.path.rpartition("/")[2])

    @property
    def origin(self) -> str:
        """The path or URL of the first picture: the list itself may lie elsewhere."""
        return self._place(next(self._paths(), ""))

    def collect(self, rows: Rows) -> Listed:
        """Add every path, also one that leads nowhere: it will be rejected as missing."""
        common, repeated = self._surveyed()
        with ThreadPoolExecutor(THREADS) as pool:
            paths = self._unlike(repeated)
            while some := list(islice(paths, TOGETHER)):
                places = [self._place(path) for path in some]
                ask = pool.map if any(map(is_remote, places)) else map
                for path, (size, mtime) in zip(some, ask(_status, places), strict=True):
                    picture = Part(encode_path(path), 0, size)
                    rows.add(_key(path, common), picture, mtime=mtime)
        return Listed()

    def reader(self) -> ListReader:
        """Open the files for reading."""
        return ListReader(self._root, self.path)

    def _unlike(self, repeated: set[int]) -> Iterator[str]:
        """Yield each path once; those alone whose hashes are `repeated` have to be kept."""
        seen: set[str] = set()
        for path in self._paths():
            if hash(path) in repeated:
                if path in seen:
                    continue
                seen.add(path)
            yield path

    def _surveyed(self) -> tuple[str, set[int]]:
        """Return the folder that all absolute paths are in, and the hashes that come repeatedly.

        Eight bytes a path are kept for it.
        """
        common: str | None = None
        hashes = array("q")
        for path in self._paths():
            hashes.append(hash(path))
            if _is_absolute(path):
                folder = os.path.dirname(_bare(path))  # noqa: PTH120 - hot path
                common = folder if common is None else os.path.commonpath([common, folder])
        ordered = np.sort(np.frombuffer(hashes, np.int64)) if hashes else np.empty(0, np.int64)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        return common or "", set(again.tolist())

    def _paths(self) -> Iterator[str]:
        """Yield the paths that the lines hold, one by one."""
        try:
            for number, line in enumerate(self._lines()):
                text = line.removesuffix(b"\r")
                if number == 0:
                    text = text.removeprefix(codecs.BOM_UTF8)
                path = self._path_in(text.decode("utf-8", "surrogateescape"))
                if path:
                    yield path
        except OSError as error:
            raise ShardsError(f"cannot read {self.path}: {error.strerror}") from error

    def _lines(self) -> Iterator[bytes]:
        """Yield the lines, without the line feeds that end them."""
        place = open_place(self.path)
        ahead, rest, offset = ReadAhead(place), b"", 0
        try:
            if b"\0" in ahead.at(0, 4096):
                raise ShardsError(f"{self.path} is no list of paths, nor any archive that is known")
            while chunk := ahead.at(offset, CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
                offset += len(chunk)
            if rest:
                yield rest
        finally:
            place.close()

    def _path_in(self, line: str) -> str:
        """Return the path that a line holds: spaces at its ends belong to it if it is there so."""
        if line == line.strip():
            return line
        return line if _status(self._place(line))[0] >= 0 else line.strip()

    @property
    def _root(self) -> str:
        return self.path.rpartition("/")[0] if "/" in self.path else "."

    def _place(self, path: str) -> str:
        return _place(self._root, path)


class ListReader:
    """Reads the files of the list `path`, whose relative paths start at `root`."""

    def __init__(self, root: str, path: str) -> None:
        self._root, self._path = root, path
        self._here = FolderReader("")

    def read(self, entry: Entry) -> Sample:
        """Return the file's bytes."""
        return read_parts(self, entry)

    def part(self, part: Part) -> bytes:
        """Return the bytes of one file; raises UnreadableError, or ShardsError if it changed."""
        place = _place(self._root, decode_path(part.location))
        if is_remote(place):
            # The list, or the bucket, tells one file that is gone from a store that is.
            witness = self._path if is_remote(self._path) else "/".join(place.split("/")[:3])
            return read_object(remote(place), place, part.size, witness)
        return self._here.part(part._replace(location=encode_path(place)))

    def close(self) -> None:
        """Nothing is held open."""


def _place(root: str, path: str) -> str:
    """Return the path or URL of what a list in `root` calls `path`.

    Addresses of the web are paths like others there: fetching them is work for other tools.
    """
    if path.startswith("file://"):
        return path.removeprefix("file://")
    if not is_remote(root) or _is_url(path) or path.startswith("/"):
        return path if _is_url(path) else os.path.join(root, path)  # noqa: PTH118 - hot path
    protocol, _, folder = root.partition("://")
    return f"{protocol}://{posixpath.normpath(posixpath.join(folder, path))}"


def _key(path: str, common: str) -> str:
    """Return the key of a picture; absolute paths and URLs count from the folder `common` on."""
    if _is_absolute(path):
        path = os.path.relpath(_bare(path), common)
    return clean_key(stem_and_ending(path)[0])


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or _is_url(path)


def _is_url(path: str) -> bool:
    return is_remote(path) and not path.startswith(WEB)


def _bare(path: str) -> str:
    """Return an absolute path, also that in a URL."""
    return "/" + path.partition("://")[2].lstrip("/") if _is_url(path) else path


def _status(place: str) -> Status:
    """Return size and time of change of the file at a path or URL; (-1, 0): there is none.

    Raises:
        ShardsError, ShardsRuntimeError: its store refuses access, or does not answer.
    """
    if is_remote(place):
        return _remote_status(place)
    try:
        status = os.stat(place)  # noqa: PTH116 - hot path
    except (OSError, ValueError):  # ValueError: a NUL, which no path has
        return -1, 0
    if not stat.S_ISREG(status.st_mode):  # a folder; or a pipe, which might never end
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _remote_status(url: str) -> Status:
    if "\0" in url:
        return -1, 0
    fs = remote(url)
    try:
        info = retried(lambda: cast(dict[str, Any], fs.info(url)), url)
    except FileNotFoundError:
        return -1, 0
    if info["type"] == "directory" or info.get("size") is None:
        return -1, 0
    return int(info["size"]), time_of(info)
