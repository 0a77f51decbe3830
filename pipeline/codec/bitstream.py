"""The `.cca` file, byte by byte: its header, its side data and its tiles. See docs/bitstream.md.

    magic, version | header, its CRC | side data | tile 0 | tile 1 | ... | checks

Reading takes nothing on trust: every length is checked against the bytes that are there and
every size against a limit before memory is taken.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.codec.errors import CodecError
from pipeline.codec.symbols import Words

MAGIC = b"\x89CCA"
VERSION = 1
# 2^27 pixels: 134 megapixels, 400 MB of RGB.
MAX_PIXELS = 2**27
_LONGEST_SIDE = 2**20
_LONGEST_SIDE_DATA = 2**30
_FINGERPRINT_BYTES = 8
_FLAGS = ("grey", "alpha", "profile", "deep", "rate")
TILE_UNIT = 64


@dataclass(frozen=True)
class Header:
    """The header of a stream.

    `fingerprint` has the first 16 hex digits of the model's fingerprint. `tile` is the side of a
    tile in pixels, a multiple of 64, or 0 for a single tile. `rate` is the rate that was asked
    for, or None for a model with a single rate. `deep` tells that the source had 16 bits.
    """

    width: int
    height: int
    fingerprint: str
    tile: int = 0
    rate: float | None = None
    grey: bool = False
    alpha: bool = False
    profile: bool = False
    deep: bool = False

    def tiles(self) -> list[tuple[int, int, int, int]]:
        """Return (top, left, height, width) of each tile, in pixels, rows first."""
        side_y, side_x = (self.tile, self.tile) if self.tile else (self.height, self.width)
        return [
            (top, left, min(side_y, self.height - top), min(side_x, self.width - left))
            for top in range(0, self.height, side_y)
            for left in range(0, self.width, side_x)
        ]


@dataclass(frozen=True)
class Stream:
    """A parsed file. `tiles` has the words of each tile; in a cut file, of those that arrived.

    `complete` is False for a cut file that was read with `partial`. `symbol_check` is then None,
    and `cut_tile` tells whether the last of `tiles` is only the beginning of a tile.
    """

    header: Header
    side: dict[str, bytes]
    tiles: list[Words]
    complete: bool
    symbol_check: int | None
    cut_tile: bool = False


def write_stream(
    header: Header, side: dict[str, bytes], tiles: list[Words], symbol_check: int
) -> bytes:
    """Return the file's bytes; `side` has the parts that the header's flags announce."""
    start = _pack_header(header)
    body = bytearray()
    for name in ("profile", "alpha"):
        if getattr(header, name):
            body += _varint(len(side[name])) + side[name]
    for words in tiles:
        body += _varint(len(words)) + words.astype("<u4").tobytes()
    return bytes(start + body + struct.pack("<II", zlib.crc32(bytes(body)), symbol_check))


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Return the header of a file; its beginning is enough as `data`. Raises as `read_stream`."""
    return _unpack_header(data, max_pixels)[0]


def read_stream(data: bytes, max_pixels: int = MAX_PIXELS, partial: bool = False) -> Stream:
    """Parse a file; `partial` also accepts one whose end is missing.

    Raises `CodecError` when it is not a `.cca` file, is damaged or cut, or has more than
    `max_pixels` pixels.
    """
    header, start = _unpack_header(data, max_pixels)
    reader = _Reader(data, start)
    side: dict[str, bytes] = {}
    tiles: list[Words] = []
    try:
        for name in ("profile", "alpha"):
            if getattr(header, name):
                side[name] = reader.take(reader.varint(_LONGEST_SIDE_DATA))
        for words in reader.tiles(len(header.tiles())):
            tiles.append(words)
        body_check, symbol_check = struct.unpack("<II", reader.take(8))
    except _CutError:
        if partial:
            tail = reader.whole_words()
            return Stream(header, side, [*tiles, *tail], False, None, bool(tail))
        raise CodecError(
            f"the file is cut: {len(data)} bytes are not all of it; `--preview` shows what is there"
        ) from None
    if reader.position != len(data):
        raise CodecError("the file is damaged: there are bytes after its end")
    if zlib.crc32(data[start:-8]) != body_check:
        raise CodecError("the file is damaged: its payload doesn't match its checksum")
    return Stream(header, side, tiles, True, symbol_check)


def _pack_header(header: Header) -> bytes:
    flags = sum(bool(getattr(header, name)) << bit for bit, name in enumerate(_FLAGS[:-1]))
    flags |= (header.rate is not None) << (len(_FLAGS) - 1)
    packed = MAGIC + bytes([VERSION, flags])
    packed += bytes.fromhex(header.fingerprint)[:_FINGERPRINT_BYTES]
    packed += _varint(header.width) + _varint(header.height) + _varint(header.tile // TILE_UNIT)
    if header.rate is not None:
        packed += struct.pack("<f", header.rate)
    return packed + struct.pack("<I", zlib.crc32(packed))


def _unpack_header(data: bytes, max_pixels: int) -> tuple[Header, int]:
    if not data.startswith(MAGIC):
        raise CodecError("this is no .cca file: it doesn't begin with its signature")
    reader = _Reader(data, len(MAGIC))
    try:
        version = reader.take(1)[0]
        if version != VERSION:
            raise CodecError(
                f"the file has format version {version}, and this program reads {VERSION}: it "
                f"needs a program that reads version {version}"
            )
        flags = reader.take(1)[0]
        fingerprint = reader.take(_FINGERPRINT_BYTES).hex()
        width, height = reader.varint(_LONGEST_SIDE), reader.varint(_LONGEST_SIDE)
        tile = reader.varint(_LONGEST_SIDE) * TILE_UNIT
        rated = bool(flags >> (len(_FLAGS) - 1) & 1)
        rate = struct.unpack("<f", reader.take(4))[0] if rated else None
        end = reader.position
        (check,) = struct.unpack("<I", reader.take(4))
    except _CutError:
        raise CodecError("the file is cut inside its header") from None
    if zlib.crc32(data[:end]) != check:
        raise CodecError("the file is damaged: its header doesn't match its checksum")
    if flags >> len(_FLAGS) or not width or not height:
        raise CodecError("the file's header makes no sense: an empty picture or unknown flags")
    if width * height > max_pixels:
        raise CodecError(
            f"the picture has {width} x {height} pixels, more than the limit of {max_pixels}"
        )
    known = {name: bool(flags >> bit & 1) for bit, name in enumerate(_FLAGS[:-1])}
    return Header(width, height, fingerprint, tile, rate, **known), reader.position


class _CutError(Exception):
    """The bytes ended too early."""


class _Reader:
    """Takes bytes off `data`, never past its end."""

    def __init__(self, data: bytes, position: int) -> None:
        self.data, self.position = data, position
        self._words_start: int | None = None

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise _CutError
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def varint(self, limit: int) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                break
        if value > limit or byte & 0x80:
            raise CodecError(f"the file is damaged: a length of {value} can't be")
        return value

    def tiles(self, count: int) -> Iterator[Words]:
        for _ in range(count):
            words = self.varint(2**32 - 1)
            self._words_start = self.position
            yield np.frombuffer(self.take(4 * words), "<u4").astype(np.uint32)
            self._words_start = None

    def whole_words(self) -> list[Words]:
        """Return the words that arrived of the tile in which the file is cut, if any."""
        if self._words_start is None:
            return []
        rest = self.data[self._words_start :]
        return [np.frombuffer(rest[: len(rest) // 4 * 4], "<u4").astype(np.uint32)]


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)
