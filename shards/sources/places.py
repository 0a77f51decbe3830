"""Bytes by their place: of a file here, or of one on a store that is read by ranges."""

from __future__ import annotations

import datetime
import io
import os
import re
from pathlib import Path
from typing import Any, Protocol, cast

from shards.errors import ShardsError
from shards.store import remote, retried

# Bytes that one request to a store asks for, where less was wanted: at first, and in the end.
LEAST, MOST = 1 << 16, 1 << 23
URL = re.compile(r"[a-z][a-z0-9+.-]*(::[a-z0-9+.-]+)*://", re.IGNORECASE)
TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")  # as stores call it


class Place(Protocol):
    """A file that is read by offset; threads may share it."""

    @property
    def size(self) -> int:
        """Its bytes."""

    @property
    def mtime(self) -> int:
        """Its time of change in nanoseconds; 0: unknown."""

    def at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on: fewer at the end alone."""

    def is_as_opened(self) -> bool:
        """Whether size and time of change are those of when it was opened."""

    def close(self) -> None:
        """Give back what was opened."""


def is_remote(name: str) -> bool:
    """Whether a source's name is an fsspec URL of something that is not a local file."""
    return URL.match(name) is not None and not name.startswith(("file://", "local://"))


def open_place(name: str) -> Place:
    """Open the file at a path or URL.

    Raises:
        OSError: a local one cannot be opened.
        ShardsError: a remote one is not there.
    """
    return RemotePlace(name) if is_remote(name) else LocalPlace(name)


class LocalPlace:
    """A file of this machine."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by close()
        status = os.fstat(self._file.fileno())
        self.size, self.mtime = status.st_size, status.st_mtime_ns

    def at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on: fewer at the end alone."""
        data = os.pread(self._file.fileno(), size, offset)
        while len(data) < size:
            more = os.pread(self._file.fileno(), size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def is_as_opened(self) -> bool:
        """Whether size and time of change are those of when it was opened."""
        status = os.fstat(self._file.fileno())
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RemotePlace:
    """A file on a store."""

    def __init__(self, url: str) -> None:
        self._url, self._fs = url, remote(url)
        self.size, self.mtime = self._status()

    def at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on: fewer at the end alone."""
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        try:
            return retried(
                lambda: cast(bytes, self._fs.cat_file(self._url, start=offset, end=end)), self._url
            )
        except FileNotFoundError:
            raise ShardsError(
                f"the source changed while it was read: {self._url} is gone"
            ) from None

    def is_as_opened(self) -> bool:
        """Whether size and time of change are those of when it was opened."""
        return self._status() == (self.size, self.mtime)

    def _status(self) -> tuple[int, int]:
        try:
            info = retried(lambda: self._fs.info(self._url), self._url)
        except FileNotFoundError:
            raise ShardsError(f"source {self._url} is not there") from None
        return int(info.get("size") or 0), time_of(info)

    def close(self) -> None:
        """Nothing is held open."""


class ReadAhead:
    """A place whose small reads, one behind the other, are served by a few large ones.

    What lies close together is read in ever larger pieces; what lies far apart, in small ones. For
    one thread: the last piece is kept.
    """

    def __init__(self, place: Place) -> None:
        self._place, self._ahead = place, LEAST
        self._start, self._data = 0, b""
        self.size, self.mtime = place.size, place.mtime

    def at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset` on: fewer at the end alone."""
        end = self._start + len(self._data)
        if not self._start <= offset <= offset + size <= end:
            if size >= MOST:
                return self._place.at(offset, size)
            close = 0 <= offset - end < self._ahead
            self._ahead = min(2 * self._ahead, MOST) if close else LEAST
            self._start = offset
            self._data = self._place.at(offset, max(size, self._ahead))
        return self._data[offset - self._start : offset - self._start + size]

    def is_as_opened(self) -> bool:
        """Whether size and time of change are those of when it was opened."""
        return self._place.is_as_opened()

    def close(self) -> None:
        """Close the place."""
        self._place.close()


class Window(io.RawIOBase):
    """A part of a place as a file of its own."""

    def __init__(self, place: Place, start: int = 0, size: int | None = None) -> None:
        self._place, self.start = place, start
        self._size = place.size - start if size is None else size
        self._position = 0

    def window(self, start: int, size: int) -> Window:
        """Return the `size` bytes from `start` of this part on, as a file."""
        return Window(self._place, self.start + start, size)

    def seekable(self) -> bool:
        """Whether it seeks: it does."""
        return True

    def readable(self) -> bool:
        """Whether it reads: it does."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to `offset`, and return the place in the part."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the place in the part."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""
        left = max(self._size - self._position, 0)
        size = left if size < 0 else min(size, left)
        data = self._place.at(self.start + self._position, size)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as there are bytes; return how many there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def time_of(info: dict[str, Any]) -> int:
    """Return the time of change, in nanoseconds, that a store tells of a file; 0: none."""
    found = next((info[name] for name in TIMES if info.get(name) is not None), None)
    if isinstance(found, str):
        try:
            found = datetime.datetime.fromisoformat(found)
        except ValueError:
            return 0
    if isinstance(found, datetime.datetime):
        return int(found.timestamp() * 1_000_000) * 1000
    return int(found * 1e9) if isinstance(found, int | float) else 0
