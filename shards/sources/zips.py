"""The pictures of a zip, read in place by its directory."""

from __future__ import annotations

import posixpath
import struct
import zlib
from dataclasses import dataclass

from shards.errors import ShardsError
from shards.sources import zipdirectory
from shards.sources.archive import bare_name, exactly, listed, place_for_listing
from shards.sources.base import (
    ClassFolders,
    Entry,
    Listed,
    Part,
    Rows,
    Sample,
    UnreadableError,
    clean_text,
    decode_path,
    encode_path,
)
from shards.sources.files import PartReader, SourceFile, add_files, read_parts
from shards.sources.gathering import Gathering, add_linked
from shards.sources.places import Window, open_place
from shards.sources.tarwalk import plain

LOCAL_HEADER = struct.Struct("<4s5HIIIHH")  # of a zip's member
STORED, DEFLATED = 0, 8
DESCRIBED_LATER = 8  # flag: sizes and checksum stand behind the data
LONGEST_LINK = 4096  # bytes of a path
DESCRIPTOR = b"PK\7\10"


@dataclass(frozen=True)
class ZipSource:
    """The pictures of a zip."""

    path: str

    @property
    def name(self) -> str:
        """The archive's file name."""
        return clean_text(self.path.rpartition("/")[2])

    @property
    def origin(self) -> str:
        """The archive's path or URL."""
        return self.path

    def collect(self, rows: Rows) -> Listed:
        """Add the pictures that the zip's directory names; raises ShardsError if there is none."""
        files, links = Gathering(rows.scratch, rows.tell), dict[str, str]()
        place = place_for_listing(self.path)
        reader = self.reader()
        try:
            for member in zipdirectory.members(Window(place)):
                file = _in_zip(member, place.mtime)
                if member.link and 0 < member.size <= LONGEST_LINK:
                    links[file.path] = _target(file, reader)
                else:
                    files.add(file)
            add_linked(files, links, place.mtime)
        except zipdirectory.DamagedZipError as error:
            raise ShardsError(
                f"{self.path} is no zip, or is cut off ({error}): fetch it again"
            ) from error
        finally:
            reader.close()
            place.close()
        classes, left = ClassFolders(bare_name(self.name)), []
        for members in files.groups():
            left += add_files(rows, members, classes)
        files.close()
        return listed(self.reader(), left, classes)

    def reader(self) -> ZipReader:
        """Open the archive for reading."""
        return ZipReader(self.path)


class ZipReader:
    """Reads members at their local headers, without the zip's directory; threads may share it."""

    def __init__(self, path: str) -> None:
        self._place, self._path = open_place(path), path

    def read(self, entry: Entry) -> Sample:
        """Return the bytes of the picture and its siblings."""
        return read_parts(self, entry)

    def part(self, part: Part) -> bytes:
        """Return the bytes of one member.

        Raises:
            UnreadableError: it is encrypted, compressed in a rare way, or damaged.
        """
        header = exactly(self._place, part.offset, LOCAL_HEADER.size, self._path)
        magic, _, flags, method, _, _, checksum, _, _, name, extra = LOCAL_HEADER.unpack(header)
        if magic != zipdirectory.LOCAL_STARTS:
            if self._place.is_as_opened():
                raise UnreadableError("the member is not where the zip's directory says")
            raise ShardsError(f"{self._path} changed while it was read: run again with --fresh")
        if flags & 1 or method not in (STORED, DEFLATED):
            how = "is encrypted" if flags & 1 else f"is compressed by method {method}"
            raise UnreadableError(f"the member {how}")
        start = part.offset + LOCAL_HEADER.size + name + extra
        if method == STORED:
            data, end = exactly(self._place, start, part.size, self._path), start + part.size
        else:
            data, end = self._inflated(start, part.size)
        checksums = self._checksums_behind(end) if flags & DESCRIBED_LATER else {checksum}
        if zlib.crc32(data) not in checksums:
            raise UnreadableError("the member's checksum is wrong")
        return data

    def _checksums_behind(self, end: int) -> set[int]:
        """Return what may be the checksum behind data that was written to a pipe.

        A signature may stand before it (APPNOTE.TXT, 4.3.9).
        """
        found = self._place.at(end, 8).ljust(8, b"\0")
        first, second = struct.unpack("<2L", found)
        return {first, second} if found.startswith(DESCRIPTOR) else {first}

    def close(self) -> None:
        """Close the zip."""
        self._place.close()

    def _inflated(self, start: int, size: int) -> tuple[bytes, int]:
        """Return `size` bytes inflated from `start`, and where the packed ones end.

        There are never more, whatever the data would give.
        """
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        data = b""
        try:
            while len(data) < size and not inflate.eof:
                chunk = self._place.at(start, max(size // 2, 1 << 16))
                if not chunk:
                    break
                start += len(chunk)
                data += inflate.decompress(chunk, size - len(data))
                while inflate.unconsumed_tail and len(data) < size:
                    data += inflate.decompress(inflate.unconsumed_tail, size - len(data))
        except zlib.error as error:
            raise UnreadableError(f"the member is damaged: {error}") from None
        if len(data) != size:
            raise UnreadableError("the member is cut off")
        return data, self._end_of(inflate, start)

    def _end_of(self, inflate: zlib._Decompress, start: int) -> int:
        """Return where a stream ends whose data are all out, and of which `start` bytes were read.

        Its last bits may not have been looked at yet.
        """
        rest = inflate.unconsumed_tail
        if not inflate.eof and not rest:
            rest = self._place.at(start, 16)
            start += len(rest)
        if not inflate.eof and inflate.decompress(rest, 1):
            raise UnreadableError("the member is longer than the zip's directory says")
        return start - len(inflate.unused_data) - len(inflate.unconsumed_tail)


def _target(link: SourceFile, reader: PartReader) -> str:
    """Return the path that a symbolic link leads to; "": it cannot be read."""
    try:
        target = decode_path(reader.part(link.part))
    except UnreadableError:
        return ""
    return plain(posixpath.join(posixpath.dirname(link.path), target))


def _in_zip(member: zipdirectory.ZipMember, mtime: int) -> SourceFile:
    path = plain(member.name.replace("\\", "/"))
    return SourceFile(path, Part(encode_path(path), member.header, member.size), mtime)
