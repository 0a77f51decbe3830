"""Archives of pictures, read in place: tar (and tars inside a tar), zip, WebDataset shards.

Only a compressed tar, which cannot be entered in the middle, is unpacked into one plain tar first:
a file without a name, which vanishes with the process.
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.errors import ShardsError
from shards.sources.base import (
    ClassFolders,
    Entry,
    Listed,
    Part,
    Rows,
    Sample,
    UnreadableError,
    encode_path,
    is_picture,
    stem_and_ending,
)
from shards.sources.captions import read_descriptions
from shards.sources.files import Found, add_files, add_samples

LOCAL_HEADER = struct.Struct("<4s5HIIIHH")  # of a zip's member
STORED, DEFLATED = 0, 8


@dataclass(frozen=True)
class TarSource:
    """The pictures of a tar, and of the tars inside it.

    A tar inside is a class folder, as in ImageNet's training set. `samples` reads the members as
    WebDataset does, by the first dot of their names. `place` is where the bytes are, if not `path`.
    """

    path: str
    samples: bool = False
    place: str = ""

    @property
    def name(self) -> str:
        """The archive's file name."""
        return Path(self.path).name

    def collect(self, rows: Rows) -> Listed:
        """Add the pictures, member by member; raises ShardsError if the archive is cut off."""
        classes, left = ClassFolders(), []
        with Path(self.place or self.path).open("rb") as file:
            mtime = os.fstat(file.fileno()).st_mtime_ns
            for members in self._members(file, 0, os.fstat(file.fileno()).st_size, "", mtime):
                if self.samples:
                    left += add_samples(rows, members)
                else:
                    left += add_files(rows, members, classes)
        return _listed(self.reader(), left, labelled=bool(classes) and not self.samples)

    def reader(self) -> TarReader:
        """Open the archive for reading."""
        return TarReader(self.place or self.path, self.path)

    def _members(
        self, file: IO[bytes], start: int, size: int, prefix: str, mtime: int
    ) -> Iterator[list[Found]]:
        """Yield the files of the tar at `start` of `file`, and of each tar inside, list by list."""
        found: list[Found] = []
        links: list[tuple[str, str]] = []
        try:
            with tarfile.open(fileobj=_Window(file, start, size), mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # else all headers are kept
                    path = prefix + _plain(member.name)
                    if member.islnk() or member.issym():
                        links.append((path, prefix + _target(member)))
                    if not member.isreg():
                        continue
                    place = start + member.offset_data
                    if place + member.size > start + size:
                        raise tarfile.ReadError("unexpected end of data")
                    if stem_and_ending(path)[1] == "tar":
                        inside = stem_and_ending(path)[0] + "/"
                        yield from self._members(file, place, member.size, inside, mtime)
                        continue
                    found.append(Found(path, Part(encode_path(path), place, member.size), mtime))
        except (tarfile.TarError, EOFError) as error:
            inside = f" (in {prefix.rstrip('/')}.tar)" if prefix else ""
            raise ShardsError(
                f"{self.path}{inside} is no tar, or is cut off ({error}): fetch it again"
            ) from error
        yield found + _linked(found, links, mtime)


class TarReader:
    """Reads members at their places; threads may share it."""

    def __init__(self, place: str, name: str) -> None:
        self._file = Path(place).open("rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._name = name

    def read(self, entry: Entry) -> Sample:
        """Return the bytes of the picture and its siblings."""
        fields = {ending: self.part(part) for ending, part in entry.siblings}
        return Sample(self.part(entry.picture), fields)

    def part(self, part: Part) -> bytes:
        """Return the bytes of one member."""
        return _at(self._file, part.offset, part.size, self._name)

    def close(self) -> None:
        """Close the archive."""
        self._file.close()


@dataclass(frozen=True)
class ZipSource:
    """The pictures of a zip."""

    path: str

    @property
    def name(self) -> str:
        """The archive's file name."""
        return Path(self.path).name

    def collect(self, rows: Rows) -> Listed:
        """Add the pictures that the zip's directory names; raises ShardsError if there is none."""
        mtime = Path(self.path).stat().st_mtime_ns
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = [info for info in archive.infolist() if not info.is_dir()]
        except zipfile.BadZipFile as error:
            raise ShardsError(
                f"{self.path} is no zip, or is cut off ({error}): fetch it again"
            ) from error
        classes = ClassFolders()
        files = (
            Found(one.filename, _zip_part(one.filename, one.header_offset, one.file_size), mtime)
            for one in members
        )
        left = add_files(rows, files, classes)
        return _listed(self.reader(), left, labelled=bool(classes))

    def reader(self) -> ZipReader:
        """Open the archive for reading."""
        return ZipReader(self.path)


class ZipReader:
    """Reads members at their local headers, without the zip's directory; threads may share it."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._path = path

    def read(self, entry: Entry) -> Sample:
        """Return the bytes of the picture and its siblings."""
        fields = {ending: self.part(part) for ending, part in entry.siblings}
        return Sample(self.part(entry.picture), fields)

    def part(self, part: Part) -> bytes:
        """Return the bytes of one member.

        Raises:
            UnreadableError: it is encrypted, compressed in a rare way, or damaged.
        """
        header = _at(self._file, part.offset, LOCAL_HEADER.size, self._path)
        magic, _, flags, method, _, _, checksum, _, _, name, extra = LOCAL_HEADER.unpack(header)
        if magic != b"PK\3\4":
            raise ShardsError(f"{self._path} changed while it was read: run again with --fresh")
        if flags & 1 or method not in (STORED, DEFLATED):
            how = "is encrypted" if flags & 1 else f"is compressed by method {method}"
            raise UnreadableError(f"the member {how}")
        start = part.offset + LOCAL_HEADER.size + name + extra
        if method == STORED:
            data = _at(self._file, start, part.size, self._path)
        else:
            data = self._inflated(start, part.size)
        described_later = flags & 8
        if not described_later and zlib.crc32(data) != checksum:
            raise UnreadableError("the member's checksum is wrong")
        return data

    def close(self) -> None:
        """Close the archive."""
        self._file.close()

    def _inflated(self, start: int, size: int) -> bytes:
        """Return `size` bytes inflated from `start`; never more, whatever the data would give."""
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        data = b""
        try:
            while len(data) < size and not inflate.eof:
                chunk = os.pread(self._file.fileno(), max(size // 2, 1 << 16), start)
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
        return data


def unpacked(path: str, scratch: Path | None) -> IO[bytes]:
    """Return the plain tar inside the compressed tar `path`, in a file without a name.

    Raises:
        ShardsError: it cannot be unpacked.
    """
    import gzip

    file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - the caller closes it
    try:
        with gzip.open(path, "rb") as packed:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        file.close()
        raise ShardsError(f"{path} is no gzip, or is cut off ({error}): fetch it again") from error
    except BaseException:
        file.close()
        raise
    file.flush()
    status = Path(path).stat()
    os.utime(file.fileno(), ns=(status.st_mtime_ns, status.st_mtime_ns))
    return file


def place_of(file: IO[bytes]) -> str:
    """Return a path by which other processes open `file`, while this one holds it."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._position, 0)
        size = left if size < 0 else min(size, left)
        data = os.pread(self._file.fileno(), size, self._start + self._position)
        self._position += len(data)
        return data


def _listed(reader: TarReader | ZipReader, left: list[Found], labelled: bool) -> Listed:
    """Return what is known of an archive once its pictures are listed."""
    try:
        described = read_descriptions(left, lambda file: reader.part(file.part))
    finally:
        reader.close()
    captions, columns, ignored = described
    return Listed(len(ignored), labelled, captions=captions, columns=columns)


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _target(link: tarfile.TarInfo) -> str:
    """Return the name of the member that a link leads to."""
    if link.islnk():
        return _plain(link.linkname)
    return posixpath.normpath(posixpath.join(posixpath.dirname(_plain(link.name)), link.linkname))


def _linked(found: list[Found], links: list[tuple[str, str]], mtime: int) -> list[Found]:
    """Return the pictures that are links, at the places of what they lead to."""
    pictures = [(path, target) for path, target in links if is_picture(path)]
    places = {file.path: file.part for file in found} if pictures else {}
    gone = Part(b"", 0, -1)
    made = []
    for path, target in pictures:
        part = places.get(target, gone)
        made.append(Found(path, Part(encode_path(path), part.offset, part.size), mtime))
    return made


def _zip_part(name: str, offset: int, size: int) -> Part:
    return Part(encode_path(name), offset, size)


def _at(file: IO[bytes], offset: int, size: int, name: str) -> bytes:
    data = os.pread(file.fileno(), size, offset)
    while len(data) < size:
        more = os.pread(file.fileno(), size - len(data), offset + len(data))
        if not more:
            raise ShardsError(f"the source changed while it was read: {name} is shorter now")
        data += more
    return data
