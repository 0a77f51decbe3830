"""Compressed tars: they cannot be entered in the middle, so each is unpacked first.

The plain tar goes to a file without a name, which vanishes with the process.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from pipeline.common.pictures.errors import first_line
from shards.errors import ShardsError
from shards.sources.places import Place, ReadAhead, Window, open_place

CHUNK = 1 << 20


Kind = tuple[str, Callable[[Any], Iterator[bytes]]]


def _read(opener: Callable[[Any], IO[bytes]], file: Any) -> Iterator[bytes]:
    """Yield what a file object of `opener` reads from `file`."""
    with contextlib.closing(opener(file)) as packed:
        while chunk := packed.read(CHUNK):
            yield chunk


def _gzip(file: Any) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=file))


def _zstd(file: Any) -> IO[bytes]:
    return cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"))


def _streams(new: Callable[[], Any], file: Any) -> Iterator[bytes]:
    """Yield what the streams in `file`, one behind the other, are unpacked to by `new()` each.

    Zeros between them fill a file up. Python's own readers take whatever else follows a stream for
    the file's end, and so lose a stream whose start is damaged.
    """
    unpacker, begun = new(), False
    while data := file.read(CHUNK):
        while data or not unpacker.needs_input:
            if not begun:
                data = data.lstrip(b"\0")
                if not data:
                    break
                begun = True
            yield unpacker.decompress(data, CHUNK)
            data = b""
            if unpacker.eof:
                data, unpacker, begun = unpacker.unused_data, new(), False
    if begun:
        raise EOFError("it ends before its end mark")


# Each compression by what its files start with: its name, and what unpacks them.
KINDS: dict[bytes, Kind] = {
    b"\x1f\x8b": ("gzip", partial(_read, _gzip)),
    b"\xfd7zXZ\0": ("xz", partial(_streams, lzma.LZMADecompressor)),
    b"BZh": ("bzip2", partial(_streams, bz2.BZ2Decompressor)),
    b"\x28\xb5\x2f\xfd": ("zstd", partial(_read, _zstd)),
    b"\x50\x2a\x4d\x18": ("zstd", partial(_read, _zstd)),  # pzstd begins with a frame to skip
}
ENDINGS = (
    *(".tar.gz", ".tgz", ".tar.xz", ".txz"),
    *(".tar.bz2", ".tbz2", ".tbz", ".tar.zst", ".tzst", ".tar.zstd"),
)
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException)
LONGEST = max(map(len, KINDS))


def is_packed(name: str, look: bool = True) -> bool:
    """Whether `name` is that of a compressed tar, or (if `look`) of a tar that is one all the same.

    Raises:
        ShardsError: a file on a store is not there.
    """
    if name.lower().endswith(ENDINGS):
        return True
    return look and _kind_of(name) is not None


def unpacked(name: str, scratch: Path | None) -> IO[bytes]:
    """Return the plain tar inside the compressed tar `name`, in a file without a name.

    Args:
        name: a path or a URL.
        scratch: folder that the file is in (default: the system's).

    Raises:
        ShardsError: it cannot be unpacked.
    """
    kind = _kind_of(name)
    if kind is None:
        raise ShardsError(f"{name} is no compressed tar: fetch it again, or mend its name")
    place = open_place(name)
    file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - the caller closes it
    try:
        _unpack(kind, place, file, name)
        file.flush()
        os.utime(file.fileno(), ns=(place.mtime, place.mtime))
    except BaseException:
        file.close()
        raise
    finally:
        place.close()
    return file


def place_of(file: IO[bytes]) -> str:
    """Return a path by which other processes open `file`, while this one holds it."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


def _unpack(kind: Kind, place: Place, file: IO[bytes], name: str) -> None:
    called, unpack = kind
    chunks = unpack(Window(ReadAhead(place)))
    while True:
        try:
            chunk = next(chunks, None)
        except DAMAGED as error:
            words = first_line(error)
            raise ShardsError(
                f"{name} is no {called}, or is cut off or damaged ({words}): fetch it again"
            ) from error
        if chunk is None:
            return
        file.write(chunk)


def _kind_of(name: str) -> Kind | None:
    place = open_place(name)
    try:
        start = place.at(0, LONGEST)
    finally:
        place.close()
    return next((kind for magic, kind in KINDS.items() if start.startswith(magic)), None)
