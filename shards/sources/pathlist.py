"""A text file that lists pictures, a path a line, relative to the file's own folder."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

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
        try:
            text = Path(self.path).read_bytes().decode("utf-8-sig", "surrogateescape")
        except OSError as error:
            raise ShardsError(f"cannot read {self.path}: {error.strerror}") from error
        if "\0" in text[:4096]:
            raise ShardsError(f"{self.path} is no list of paths, nor any archive that is known")
        lines = (self._path_in(line.removesuffix("\r")) for line in text.split("\n"))
        paths = list(dict.fromkeys(line for line in lines if line))
        absolute = [path for path in paths if path.startswith("/")]
        common = os.path.commonpath([os.path.dirname(path) for path in absolute] or [""])  # noqa: PTH120
        for path in paths:
            key = os.path.relpath(path, common) if path.startswith("/") else path
            size, mtime = self._status(path)
            rows.add(
                clean_key(stem_and_ending(key)[0]), Part(encode_path(path), 0, size), mtime=mtime
            )
        return Listed()

    def reader(self) -> FolderReader:
        """Open the files for reading."""
        return FolderReader(str(Path(self.path).parent))

    def _path_in(self, line: str) -> str:
        """Return the path that a line holds: spaces at its ends belong to it if it is there so."""
        return line if self._status(line)[0] >= 0 else line.strip()

    def _status(self, path: str) -> tuple[int, int]:
        try:
            status = (Path(self.path).parent / path).stat()
        except (OSError, ValueError):  # ValueError: a NUL, which no path has
            return -1, 0
        if not stat.S_ISREG(status.st_mode):  # a folder; or a pipe, which might never end
            return -1, 0
        return status.st_size, status.st_mtime_ns
