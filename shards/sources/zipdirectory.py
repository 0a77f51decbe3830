"""Reads the directory of a zip, entry by entry: names may hold any bytes.

Python's `zipfile` refuses the whole archive for one name that is no UTF-8. The layout is that of
PKWARE's APPNOTE.TXT, 4.3.12 (central directory), 4.3.14 to 4.3.16 (its ends).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from shards.sources.places import Window

ENTRY = struct.Struct("<4s4B4HL2L5H2L")
END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
UTF_8 = 1 << 11  # flag: the name is UTF-8
NAMES = "cp437"  # what other names are in
WIDE = 0xFFFFFFFF
WIDE_EXTRA = 1  # id of the field with 64-bit sizes
LONGEST_COMMENT = 1 << 16


class DamagedZipError(Exception):
    """A file without a whole directory of a zip."""


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file of a zip: its name, the offset of its header, its size once unpacked."""

    name: str
    header: int
    size: int


def members(file: IO[bytes] | Window) -> Iterator[ZipMember]:
    """Yield the files that the directory of the zip `file` lists.

    A name that is no UTF-8 though it says so has surrogates for its odd bytes, as a path has.

    Raises:
        DamagedZipError: there is no directory, or it is damaged.
    """
    try:
        count, place, shift = _directory(file)
        for _ in range(count):
            file.seek(place)
            fields = ENTRY.unpack(file.read(ENTRY.size))
            if fields[0] != b"PK\1\2":
                raise DamagedZipError(f"its directory is damaged at byte {place:,}")
            flags, size, header = fields[5], fields[11], fields[18]
            name_bytes, extra_bytes, comment_bytes = fields[12:15]
            name, extra = file.read(name_bytes), file.read(extra_bytes)
            place += ENTRY.size + name_bytes + extra_bytes + comment_bytes
            size, header = _wide(extra, size, fields[10], header)
            if not name.endswith((b"/", b"\\")):
                yield ZipMember(_name(name, flags), header + shift, size)
    except (struct.error, OverflowError) as error:
        raise DamagedZipError("its directory is cut off") from error


def _directory(file: IO[bytes] | Window) -> tuple[int, int, int]:
    """Return entries, offset of the first, and how many bytes stand before the zip."""
    size = file.seek(0, 2)
    reach = min(size, END.size + LONGEST_COMMENT)
    file.seek(size - reach)
    tail = file.read(reach)
    found = tail.rfind(b"PK\5\6")
    if found < 0:
        raise DamagedZipError("no end of a zip's directory")
    end = size - reach + found
    _, _, _, _, count, length, offset, _ = END.unpack(tail[found : found + END.size])
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
    return count, start, start - offset


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int]:
    """Return size and header, from the extra field where 32 bits do not hold them."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<2H", extra[:4])
        if kind == WIDE_EXTRA:
            numbers = list(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
            values = [numbers.pop(0) if v == WIDE else v for v in (size, packed, header)]
            return values[0], values[2]
        extra = extra[4 + length :]
    return size, header


def _name(name: bytes, flags: int) -> str:
    text = name.decode("utf-8", "surrogateescape") if flags & UTF_8 else name.decode(NAMES)
    return text.partition("\0")[0]
