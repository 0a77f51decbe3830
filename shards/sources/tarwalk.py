"""Walks the members of a tar to its very end, or says where it is damaged.

Python's `tarfile` takes the first header that it cannot read for the end of the archive, and so
loses the rest of a damaged or cut-off one, and all that was joined to it (`cat a.tar b.tar`).
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO

BLOCK = tarfile.BLOCKSIZE
END = 2 * BLOCK  # bytes of zeros, at least, that end an archive
CHUNK = 1 << 20


class DamagedTarError(Exception):
    """A tar that cannot be walked to its end; the message names the offset."""


class Window(io.RawIOBase):
    """A part of a file as a file of its own, read by offset."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

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
        data = os.pread(self._file.fileno(), size, self._start + self._position)
        self._position += len(data)
        return data


def walk(file: IO[bytes] | Window) -> Iterator[tarfile.TarInfo]:
    """Yield the members of the tar `file`, and of the tars joined to its end.

    Raises:
        DamagedTarError: a header is damaged, or the end is missing.
    """
    start: int | None = 0
    while start is not None:
        file.seek(start)
        last = start
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # else all headers are kept
                    last = member.offset
                    yield member
                stop = tar.offset
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise DamagedTarError(f"{error} after byte {last:,}") from error
        start = _after(file, stop)


def _after(file: IO[bytes] | Window, stop: int) -> int | None:
    """Return where another tar starts behind the one whose walk stopped at `stop`; None: nowhere.

    Raises:
        DamagedTarError: the walk stopped at something else than the end of the archive.
    """
    file.seek(stop)
    block = file.read(BLOCK)
    if not block:
        raise DamagedTarError(f"cut off at byte {stop:,}: its end mark is missing")
    if block.strip(b"\0"):
        what = "cut off in the header" if len(block) < BLOCK else "a damaged header"
        raise DamagedTarError(f"{what} at byte {stop:,}")
    place = stop + len(block)
    while chunk := file.read(CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            place += len(chunk) - len(rest)
            break
        place += len(chunk)
    else:
        return None
    joined = stop + (place - stop) // BLOCK * BLOCK
    if joined - stop < END:
        raise DamagedTarError(f"a blank header at byte {stop:,}, and more members behind it")
    return joined


def followed(links: Mapping[str, str], name: str) -> str:
    """Return the member that the link `name` leads to at last; `name` itself if in a circle."""
    seen = set()
    end = name
    while end in links:
        if end in seen:
            return name
        seen.add(end)
        end = links[end]
    return end


def target(link: tarfile.TarInfo) -> str:
    """Return the name of the member that `link` leads to, as `plain` gives names."""
    if link.islnk():
        return plain(link.linkname)
    return plain(posixpath.join(posixpath.dirname(link.name), link.linkname))


def plain(name: str) -> str:
    """Return the path `name` without `.` parts, and not above or outside of the archive."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return "/".join(parts)
