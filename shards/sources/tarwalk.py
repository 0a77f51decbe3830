"""Walks the members of a tar to its very end, or says where it is damaged.

Python's `tarfile` takes the first header that it cannot read for the end of the archive, and so
loses the rest of a damaged or cut-off one, and all that was joined to it (`cat a.tar b.tar`).
"""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Generator, Iterator, Mapping
from typing import IO, NamedTuple
from zlib import adler32

from shards.sources.places import Window

BLOCK = tarfile.BLOCKSIZE
PLAIN = re.compile(r"[^/.][^/]*(?:/[^/.][^/]*)*", re.DOTALL)  # a path that is as it should be
NUMBER = re.compile(rb" *([0-7]+)[ \0]*")
END = 2 * BLOCK  # bytes of zeros, at least, that end an archive
CHUNK = 1 << 20
AHEAD = 1 << 16  # bytes that are read at once where headers stand close together
LONGEST_CHAIN = 40  # links that lead to links: as many as Linux follows


class DamagedTarError(Exception):
    """A tar that cannot be walked to its end; the message names the offset."""


class Member(NamedTuple):
    """What a header says: `offset` is its own place, `offset_data` that of the bytes behind it."""

    name: str
    offset: int
    offset_data: int
    size: int
    type: bytes = tarfile.REGTYPE
    linkname: str = ""
    sparse: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it holds bytes: POSIX takes a kind that it does not know for a file."""
        return self.type in tarfile.REGULAR_TYPES or self.type not in tarfile.SUPPORTED_TYPES

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.type == tarfile.DIRTYPE

    @property
    def is_link(self) -> bool:
        """Whether it stands for another member."""
        return self.type in (tarfile.LNKTYPE, tarfile.SYMTYPE)


def walk(file: IO[bytes] | Window) -> Iterator[Member]:
    """Yield the members of the tar `file`, and of the tars joined to its end.

    Raises:
        DamagedTarError: a header is damaged, or the end is missing.
    """
    start: int | None = 0
    while start is not None:
        stop = yield from _plain_members(file, start)
        if _starts_a_header(file, stop):
            stop = yield from _members(file, stop)
        start = _after(file, stop)


def _plain_members(file: IO[bytes] | Window, place: int) -> Generator[Member, None, int]:
    """Yield members up to the first whose header says more than name and size.

    Most archives have no other headers, and `tarfile` takes ten times as long for one. Returns
    the offset of what follows.
    """
    chunk, start = b"", place
    while True:
        header = chunk[place - start : place - start + BLOCK]
        if len(header) < BLOCK:
            # Headers of small members stand close together; of large ones, each is read alone.
            size = AHEAD if place - start <= 2 * AHEAD else BLOCK
            file.seek(place)
            chunk, start = file.read(size), place
            header = chunk[:BLOCK]
        member = _plain_member(header, place)
        if member is None:
            return place
        yield member
        place = member.offset_data + -(-member.size // BLOCK) * BLOCK


def _plain_member(header: bytes, place: int) -> Member | None:
    """Return the file or folder of a ustar header without extensions; None: it is another one.

    The fields are those of POSIX.1-2017, `pax`, "ustar Interchange Format".
    """
    kind = header[156:157]
    if len(header) < BLOCK or (kind != tarfile.REGTYPE and kind != tarfile.DIRTYPE):
        return None
    size, told = _octal(header[124:136]), _octal(header[148:156])
    if size is None or told != _sum(header):
        return None
    name = header[:100].partition(b"\0")[0]
    if header[345]:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    path = name.decode("utf-8", "surrogateescape")
    if kind == tarfile.DIRTYPE:
        return Member(path.rstrip("/"), place, place + BLOCK, 0, kind)
    return Member(path, place, place + BLOCK, size)


def _octal(field: bytes) -> int | None:
    """Return the number of a field, or None where it is written in another way."""
    digits = NUMBER.fullmatch(field)
    return int(digits[1], 8) if digits else None


def _sum(header: bytes) -> int:
    """Return the checksum of a header, its own field taken as blanks.

    Adler-32's low half is the sum of the bytes modulo 65521, which 256 bytes stay below.
    """
    both = (adler32(header[:256], 0) & 0xFFFF) + (adler32(header[256:], 0) & 0xFFFF)
    return both - (adler32(header[148:156], 0) & 0xFFFF) + 8 * ord(" ")


def _starts_a_header(file: IO[bytes] | Window, place: int) -> bool:
    file.seek(place)
    block = file.read(BLOCK)
    return len(block) == BLOCK and bool(block.strip(b"\0"))


def _members(file: IO[bytes] | Window, start: int) -> Generator[Member, None, int]:
    """Yield the members from `start` on as `tarfile` reads them; return where it stopped."""
    last = start
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else all headers are kept
                last = member.offset
                if "\0" in member.name:
                    raise tarfile.HeaderError("malformed extended header")
                yield _told(member)
            return tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise DamagedTarError(f"{error} after byte {last:,}") from error


def _told(member: tarfile.TarInfo) -> Member:
    return Member(
        member.name,
        member.offset,
        member.offset_data,
        member.size,
        member.type,
        member.linkname,
        member.issparse(),
    )


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
    """Return the path that `name` leads to through links, to files and to folders above it.

    That is `name` itself if they lead in a circle.
    """
    seen = {name}
    end = name
    while True:
        link = next((above for above in (*parents(end), end) if above in links), None)
        if link is None:
            return end
        end = links[link] + end[len(link) :]
        if end in seen or len(seen) > LONGEST_CHAIN:
            return name
        seen.add(end)


def parents(path: str) -> list[str]:
    """Return the folders that `path` is in, the outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def target(link: Member) -> str:
    """Return the name of the member that `link` leads to, as `plain` gives names."""
    if link.type == tarfile.LNKTYPE:
        return plain(link.linkname)
    return plain(posixpath.join(posixpath.dirname(link.name), link.linkname))


def plain(name: str) -> str:
    """Return the path `name` without `.` parts, and not above or outside of the archive."""
    if PLAIN.fullmatch(name):
        return name
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part not in ("", ".", ".."):
            parts.append(part)
    return "/".join(parts)
