"""Writes tars whose bytes depend on their members alone."""

from __future__ import annotations

import hashlib
import tarfile
from typing import IO, Any

from shards.making.partial import start_writing
from shards.manifest import ShardInfo
from shards.samples.sample import Ready

BLOCK, RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
# Limits of a header's name and size fields: beyond them, `tarfile` writes longer headers.
NAME_BYTES, LARGEST = 100, 8**11 - 1
AHEAD = 4 << 20  # bytes after which the disk begins to write
EMPTY_HEADER = tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT)


class TarFile:
    """Writes an ordinary tar whose bytes depend on the members alone: no times, no owners."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._position = self._started = 0

    def add(self, sample: Ready) -> dict[str, Any]:
        """Write the sample's members, the picture first; return its row of the sidecar.

        Another member with the picture's ending gets a name of its own: `KEY.other.ENDING`.
        """
        key = sample.row["key"]
        member = f"{key}.{sample.ending}"
        offset = self._add(member, sample.picture)
        for ending in sorted(sample.others):
            name = f"other.{ending}" if ending == sample.ending else ending
            self._add(f"{key}.{name}", sample.others[ending])
        if self._position - self._started > AHEAD:
            start_writing(self._file, self._started, self._position)
            self._started = self._position
        return {**sample.row, "member": member, "offset": offset}

    def finish(self, name: str, samples: int) -> ShardInfo:
        """Write the end of the archive; return facts about the file."""
        end = self._position + 2 * BLOCK
        self._write(b"\0" * (2 * BLOCK + -end % RECORD))
        return ShardInfo(name, samples, self._position, self._hash.hexdigest())

    def _add(self, name: str, data: bytes) -> int:
        """Write one member; return the offset of its data in bytes."""
        self._write(header(name, len(data)))
        offset = self._position
        self._write(data)
        self._write(b"\0" * (-len(data) % BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._position += len(data)


def header(name: str, size: int) -> bytes:
    """Return the header of a member: `tarfile`'s own in GNU format, for most names made quicker."""
    if len(name) > NAME_BYTES or not name.isascii() or size > LARGEST:
        member = tarfile.TarInfo(name)
        member.size = size
        return member.tobuf(tarfile.GNU_FORMAT)
    fields = b"%b%011o\0" % (EMPTY_HEADER[100:124], size)
    blank = name.encode().ljust(NAME_BYTES, b"\0") + fields + EMPTY_HEADER[136:148] + b" " * 8
    checksum = sum(blank) + sum(EMPTY_HEADER[156:])
    return blank[:148] + b"%06o\0 " % checksum + EMPTY_HEADER[156:]
