"""A text file that lists pictures, a path a line, relative to the file's own folder."""

from __future__ import annotations

import codecs
import os
import stat
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import ShardsError
from shards.sources.base import (
    Listed,
    Part,
    Rows,
    clean_key,
    clean_text,
    encode_path,
    stem_and_ending,
)
from shards.sources.folder import FolderReader


@dataclass(frozen=True)
class ListSource:
    """The pictures whose paths the text file `path` lists. Empty and repeated lines are nothing."""

    path: str

    @property
    def name(self) -> str:
        """The list's file name."""
        return clean_text(Path(self.path).name)

    def collect(self, rows: Rows) -> Listed:
        """Add every path, also one that leads nowhere: it will be rejected as missing."""
        common, repeated = self._surveyed()
        seen: set[str] = set()
        for path in self._paths():
            if hash(path) in repeated:
                if path in seen:
                    continue
                seen.add(path)
            key = os.path.relpath(path, common) if path.startswith("/") else path
            size, mtime = self._status(path)
            rows.add(
                clean_key(stem_and_ending(key)[0]), Part(encode_path(path), 0, size), mtime=mtime
            )
        return Listed()

    def _surveyed(self) -> tuple[str, set[int]]:
        """Return the folder that all absolute paths are in, and the hashes that come repeatedly.

        Eight bytes a path are kept for it.
        """
        common: str | None = None
        hashes = array("q")
        for path in self._paths():
            hashes.append(hash(path))
            if path.startswith("/"):
                folder = os.path.dirname(path)  # noqa: PTH120 - hot path
                common = folder if common is None else os.path.commonpath([common, folder])
        ordered = np.sort(np.frombuffer(hashes, np.int64)) if hashes else np.empty(0, np.int64)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        return common or "", set(again.tolist())

    def _paths(self) -> Iterator[str]:
        """Yield the paths that the lines hold, one by one."""
        try:
            with Path(self.path).open("rb") as file:
                if b"\0" in file.read(4096):
                    raise ShardsError(
                        f"{self.path} is no list of paths, nor any archive that is known"
                    )
                file.seek(0)
                for number, line in enumerate(file):
                    text = line.removesuffix(b"\n").removesuffix(b"\r")
                    if number == 0:
                        text = text.removeprefix(codecs.BOM_UTF8)
                    path = self._path_in(text.decode("utf-8", "surrogateescape"))
                    if path:
                        yield path
        except OSError as error:
            raise ShardsError(f"cannot read {self.path}: {error.strerror}") from error

    def reader(self) -> FolderReader:
        """Open the files for reading."""
        return FolderReader(str(Path(self.path).parent))

    def _path_in(self, line: str) -> str:
        """Return the path that a line holds: spaces at its ends belong to it if it is there so."""
        if line == line.strip():
            return line
        return line if self._status(line)[0] >= 0 else line.strip()

    def _status(self, path: str) -> tuple[int, int]:
        try:
            status = os.stat(os.path.join(os.path.dirname(self.path), path))  # noqa: PTH116, PTH118, PTH120 - hot path
        except (OSError, ValueError):  # ValueError: a NUL, which no path has
            return -1, 0
        if not stat.S_ISREG(status.st_mode):  # a folder; or a pipe, which might never end
            return -1, 0
        return status.st_size, status.st_mtime_ns
