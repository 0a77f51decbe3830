"""Reads the directory of a zip, entry by entry: names may hold any bytes.

Python's `zipfile` refuses the whole archive for one name that is no UTF-8. The layout is that of
PKWARE's APPNOTE.TXT, 4.3.12 (central directory), 4.3.14 to 4.3.16 (its ends).
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from shards.sources.places import Window

ENTRY = struct.Struct("<4s4B4HL2L5H2L")
END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
# What entries, their ends, a digital signature and a member's own header start with.
ENTRY_STARTS, END_STARTS, SIGNATURE, LOCAL_STARTS = b"PK\1\2", b"PK\5\6", b"PK\5\5", b"PK\3\4"
LOCAL_BYTES = 30  # of a member's header, at least
UNIX = 3  # the system whose modes of files an entry holds
UTF_8 = 1 << 11  # flag: the name is UTF-8
NAMES = "cp437"  # what other names are in
WIDE = 0xFFFFFFFF
WIDE_EXTRA = 1  # id of the field with 64-bit sizes
LONGEST_COMMENT = 1 << 16


class DamagedZipError(Exception):
    """A file without a whole directory of a zip."""


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file of a zip: its name, the offset of its header, its size once unpacked.

    The size is -1 where its bytes would lie outside of the zip. A `link` holds the path that it
    leads to.
    """

    name: str
    header: int
    size: int
    link: bool = False


@dataclass(frozen=True)
class _Directory:
    """Entries, where the first one is, where they end, and how many bytes stand before the zip."""

    count: int
    start: int
    end: int
    shift: int


def members(file: IO[bytes] | Window) -> Iterator[ZipMember]:
    """Yield the files that the directory of the zip `file` lists.

    A name that is no UTF-8 though it says so has surrogates for its odd bytes, as a path has.
    The directory counts: some programs write the number of entries modulo 65,536.

    Raises:
        DamagedZipError: there is no directory, or it is damaged.
    """
    try:
        directory = _directory(file)
        place, found = directory.start, 0
        while place < directory.end:
            file.seek(place)
            fields = ENTRY.unpack(file.read(ENTRY.size))
            if fields[0] != ENTRY_STARTS:
                if fields[0] == SIGNATURE:
                    break
                raise DamagedZipError(f"its directory is damaged at byte {place:,}")
            name_bytes, extra_bytes, comment_bytes = fields[12:15]
            name, extra = file.read(name_bytes), file.read(extra_bytes)
            place += ENTRY.size + name_bytes + extra_bytes + comment_bytes
            found += 1
            if not name.endswith((b"/", b"\\")):
                yield _member(fields, name, extra, directory)
    except (struct.error, OverflowError) as error:
        raise DamagedZipError("its directory is cut off") from error
    if found < directory.count:
        raise DamagedZipError(f"its directory has {found:,} of {directory.count:,} entries")


def _member(fields: tuple[Any, ...], name: bytes, extra: bytes, where: _Directory) -> ZipMember:
    size, packed, header = _wide(extra, fields[11], fields[10], fields[18])
    header += where.shift
    inside = header + LOCAL_BYTES + packed <= where.start
    is_link = fields[2] == UNIX and stat.S_ISLNK(fields[17] >> 16)
    return ZipMember(_name(name, fields[5]), header, size if inside else -1, is_link)


def _directory(file: IO[bytes] | Window) -> _Directory:
    """Return where the directory is: an archive's comment may hold what looks like its end."""
    size = file.seek(0, 2)
    reach = min(size, END.size + LONGEST_COMMENT)
    file.seek(size - reach)
    tail = file.read(reach)
    found, failure = len(tail), DamagedZipError("no end of a zip's directory")
    while (found := tail.rfind(END_STARTS, 0, found)) >= 0:
        try:
            directory = _ended_at(file, size - reach + found)
        except (DamagedZipError, struct.error) as error:
            failure = DamagedZipError(str(error))
            continue
        file.seek(0)
        if directory.shift and file.read(4) == LOCAL_STARTS:
            raise DamagedZipError(
                f"another zip stands before it, up to byte {directory.shift:,}: split it there"
            )
        return directory
    raise failure


def _ended_at(file: IO[bytes] | Window, end: int) -> _Directory:
    """Return the directory whose end record is at byte `end`."""
    file.seek(end)
    _, disk, _, _, count, length, offset, _ = END.unpack(file.read(END.size))
    if disk not in (0, 0xFFFF):
        raise DamagedZipError("it is one part of a split zip: join the parts, as `zip -s 0` does")
    file.seek(max(end - LOCATOR_64.size, 0))
    locator = file.read(LOCATOR_64.size)
    if locator.startswith(b"PK\6\7"):
        end -= LOCATOR_64.size + END_64.size
        file.seek(end)
        fields = END_64.unpack(file.read(END_64.size))
        if fields[0] != b"PK\6\6":
            raise DamagedZipError("its directory's end is damaged")
        count, length, offset = fields[7:10]
    start = end - length
    if start < offset or start < 0:
        raise DamagedZipError("its directory is cut off")
    file.seek(start)
    if (length or start) and file.read(4) != ENTRY_STARTS:
        raise DamagedZipError(f"no directory at byte {start:,}")
    return _Directory(count, start, end, start - offset)


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Return these numbers, from the extra field where 32 bits do not hold them."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<2H", extra[:4])
        if kind == WIDE_EXTRA:
            numbers = list(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
            if len(numbers) >= (size, packed, header).count(WIDE):
                size, packed, header = (
                    numbers.pop(0) if value == WIDE else value for value in (size, packed, header)
                )
            break
        extra = extra[4 + length :]
    return size, packed, header


def _name(name: bytes, flags: int) -> str:
    text = name.decode("utf-8", "surrogateescape") if flags & UTF_8 else name.decode(NAMES)
    return text.partition("\0")[0]
