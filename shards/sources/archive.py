"""Archives of pictures, read in place: tar (and tars inside a tar), zip, WebDataset shards.

Only a compressed tar, which cannot be entered in the middle, is unpacked into one plain tar first:
a file without a name, which vanishes with the process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.errors import ShardsError
from shards.sources import zipdirectory
from shards.sources.base import (
    ClassFolders,
    Entry,
    Listed,
    Part,
    Rows,
    Sample,
    UnreadableError,
    clean_text,
    encode_path,
    stem_and_ending,
)
from shards.sources.captions import read_descriptions
from shards.sources.files import Found, add_files, add_samples
from shards.sources.gathering import Gathering, add_linked
from shards.sources.tarwalk import DamagedTarError, Window, plain, target, walk

LOCAL_HEADER = struct.Struct("<4s5HIIIHH")  # of a zip's member
STORED, DEFLATED = 0, 8
DESCRIBED_LATER = 8  # flag: sizes and checksum stand behind the data
DESCRIPTOR = b"PK\7\10"


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
        return clean_text(Path(self.path).name)

    def collect(self, rows: Rows) -> Listed:
        """Add the pictures, member by member; raises ShardsError if the archive is cut off."""
        classes, left = ClassFolders(), []
        with Path(self.place or self.path).open("rb") as file:
            mtime = os.fstat(file.fileno()).st_mtime_ns
            size = os.fstat(file.fileno()).st_size
            for members in self._members(Window(file, 0, size), "", mtime, rows):
                if self.samples:
                    left += add_samples(rows, members)
                else:
                    left += add_files(rows, members, classes)
        return _listed(self.reader(), left, labelled=bool(classes) and not self.samples)

    def reader(self) -> TarReader:
        """Open the archive for reading."""
        return TarReader(self.place or self.path, self.path)

    def _members(self, tar: Window, prefix: str, mtime: int, rows: Rows) -> Iterator[list[Found]]:
        """Yield the files of `tar`, and of each tar inside, those of a stem together."""
        links: dict[str, str] = {}
        with contextlib.closing(Gathering(rows.scratch, rows.tell)) as files:
            try:
                for member in walk(tar):
                    path = prefix + plain(member.name)
                    if member.islnk() or member.issym():
                        links[path] = prefix + target(member)
                    if not member.isreg():
                        continue
                    stem, ending = stem_and_ending(path)
                    if ending == "tar" and not member.issparse():
                        inner = tar.window(member.offset_data, member.size)
                        yield from self._members(inner, stem + "/", mtime, rows)
                    else:
                        files.add(Found(path, _tar_part(path, member, tar.start), mtime))
            except DamagedTarError as error:
                inside = f" (in {prefix.rstrip('/')}.tar)" if prefix else ""
                raise ShardsError(
                    f"{self.path}{inside} is no tar, or is cut off or damaged ({error}): "
                    "fetch it again"
                ) from error
            add_linked(files, links, mtime)
            yield from files.groups()


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
        """Return the bytes of one member; raises UnreadableError if they cannot be had."""
        if part.offset < 0:
            return self._sparse(-1 - part.offset)
        return _at(self._file, part.offset, part.size, self._name)

    def _sparse(self, header: int) -> bytes:
        """Return the bytes of the sparse member whose header is at `header`, holes as zeros."""
        window = Window(self._file, header, os.fstat(self._file.fileno()).st_size - header)
        try:
            with tarfile.open(fileobj=window, mode="r:") as tar:
                member = tar.next()
                file = tar.extractfile(member) if member is not None else None
                return file.read() if file is not None else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UnreadableError(f"the sparse member is damaged: {error}") from None

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
        return clean_text(Path(self.path).name)

    def collect(self, rows: Rows) -> Listed:
        """Add the pictures that the zip's directory names; raises ShardsError if there is none."""
        mtime = Path(self.path).stat().st_mtime_ns
        files = Gathering(rows.scratch, rows.tell)
        try:
            with Path(self.path).open("rb") as archive:
                for member in zipdirectory.members(archive):
                    files.add(_in_zip(member, mtime))
        except zipdirectory.DamagedZipError as error:
            raise ShardsError(
                f"{self.path} is no zip, or is cut off ({error}): fetch it again"
            ) from error
        classes, left = ClassFolders(), []
        for members in files.groups():
            left += add_files(rows, members, classes)
        files.close()
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
            data, end = _at(self._file, start, part.size, self._path), start + part.size
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
        found = os.pread(self._file.fileno(), 8, end).ljust(8, b"\0")
        first, second = struct.unpack("<2L", found)
        return {first, second} if found.startswith(DESCRIPTOR) else {first}

    def close(self) -> None:
        """Close the archive."""
        self._file.close()

    def _inflated(self, start: int, size: int) -> tuple[bytes, int]:
        """Return `size` bytes inflated from `start`, and where the packed ones end.

        There are never more, whatever the data would give.
        """
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
        return data, self._end_of(inflate, start)

    def _end_of(self, inflate: zlib._Decompress, start: int) -> int:
        """Return where a stream ends whose data are all out, and of which `start` bytes were read.

        Its last bits may not have been looked at yet.
        """
        rest = inflate.unconsumed_tail
        if not inflate.eof and not rest:
            rest = os.pread(self._file.fileno(), 16, start)
            start += len(rest)
        if not inflate.eof and inflate.decompress(rest, 1):
            raise UnreadableError("the member is longer than the zip's directory says")
        return start - len(inflate.unused_data) - len(inflate.unconsumed_tail)


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


def _listed(reader: TarReader | ZipReader, left: list[Found], labelled: bool) -> Listed:
    """Return what is known of an archive once its pictures are listed."""
    try:
        described = read_descriptions(left, lambda file: reader.part(file.part))
    finally:
        reader.close()
    return Listed(
        len(described.left),
        labelled,
        captions=described.captions,
        columns=described.columns,
        notes=described.notes,
        named=described.named,
    )


def _tar_part(path: str, member: tarfile.TarInfo, start: int) -> Part:
    """Return where the bytes of `member` are, of a tar at `start` of its file.

    Those of a sparse member are scattered: an offset of -1 - n stands for its header at n.
    """
    offset = -1 - (start + member.offset) if member.issparse() else start + member.offset_data
    return Part(encode_path(path), offset, member.size)


def _in_zip(member: zipdirectory.ZipMember, mtime: int) -> Found:
    path = plain(member.name.replace("\\", "/"))
    return Found(path, Part(encode_path(path), member.header, member.size), mtime)


def _at(file: IO[bytes], offset: int, size: int, name: str) -> bytes:
    data = os.pread(file.fileno(), size, offset)
    while len(data) < size:
        more = os.pread(file.fileno(), size - len(data), offset + len(data))
        if not more:
            raise ShardsError(f"the source changed while it was read: {name} is shorter now")
        data += more
    return data
