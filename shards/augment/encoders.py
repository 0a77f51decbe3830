"""Writes pictures without loss: PNG, WebP or JPEG XL, each quickly or small.

A PNG is quick when one filter serves all rows, so that numpy can work it out, and the deflater is
quick. The filter is "average", the best one for photographs. libdeflate's bytes are the same on
every processor, and so are zlib's with run lengths alone.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from shards.augment.resampling import Pixels
from shards.augment.spec import Spec
from shards.errors import ShardsError

Encoder = Callable[[Pixels, bytes | None], bytes]
SIGNATURE, AVERAGE, RGB = b"\x89PNG\r\n\x1a\n", 3, 2
# What Pillow is given, by format and encoder.
PILLOW: Mapping[tuple[str, str], dict[str, Any]] = {
    ("png", "small"): {"compress_level": 4},
    ("webp", "fast"): {"lossless": True, "exact": True, "method": 0, "quality": 0},
    ("webp", "small"): {"lossless": True, "exact": True},
    ("jxl", "fast"): {"lossless": True, "effort": 1, "num_threads": 1},
    ("jxl", "small"): {"lossless": True, "effort": 7, "num_threads": 1},
}


def encoder_for(spec: Spec) -> Encoder:
    """Return a function from pixels (uint8 (H, W, 3)) and a colour profile to a file's bytes.

    Raises:
        ShardsError: the encoder is not installed.
    """
    form, name = spec.format, spec.encoder
    if form == "png" and name in DEFLATERS:
        deflater = DEFLATERS[name]()
        return lambda pixels, profile: png(pixels, deflater, profile)
    if form == "jxl":
        try:
            import pillow_jxl  # noqa: F401  # tells Pillow of the format
        except ImportError as error:
            raise ShardsError(
                "format jxl is written with pillow-jxl-plugin: pip install 'cca-pipeline[formats]'"
            ) from error
    options = PILLOW[form, name]
    return lambda pixels, profile: _by_pillow(pixels, form, options, profile)


def png(pixels: Pixels, deflater: Deflater, profile: bytes | None = None) -> bytes:
    """Return a PNG of uint8 (H, W, 3), all of whose rows have the filter "average"."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, RGB, 0, 0, 0)
    chunks: list[tuple[bytes, bytes | bytearray]] = [(b"IHDR", header)]
    if profile is not None:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(profile)))
    chunks += [(b"IDAT", deflater.deflate(filter_rows(pixels).data)), (b"IEND", b"")]
    pieces: list[bytes | bytearray] = [SIGNATURE]
    for kind, data in chunks:
        check = deflater.crc32(data, zlib.crc32(kind))
        pieces += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", check)]
    return b"".join(pieces)


def filter_rows(pixels: Pixels) -> Pixels:
    """Return rows of bytes (H, 1 + 3 W): the filter, then differences from neighbours' means."""
    height, width = pixels.shape[:2]
    # With a black pixel before each row and a black row above.
    padded = np.zeros((height + 1, 3 + 3 * width), np.uint8)
    rows, left, above = padded[1:, 3:], padded[1:, :-3], padded[:-1, 3:]
    rows[:] = pixels.reshape(height, 3 * width)
    mean, differing = left & above, left ^ above
    mean += np.right_shift(differing, 1, out=differing)  # rounded down, in 8 bits
    filtered = np.empty((height, 1 + 3 * width), np.uint8)
    filtered[:, 0] = AVERAGE
    np.subtract(rows, mean, out=filtered[:, 1:])
    return filtered


class Deflater(NamedTuple):
    """The functions that compress a PNG's filtered rows, and compute their checksum.

    `crc32` takes data, and the sum of what comes before it.
    """

    deflate: Callable[[memoryview], bytes | bytearray]
    crc32: Callable[[bytes | bytearray, int], int]


def _libdeflate() -> Deflater:
    try:
        from deflate import crc32, zlib_compress
    except ImportError as error:
        raise ShardsError(
            "encode libdeflate needs its package: pip install 'cca-pipeline[turbo]', "
            "or give `encode: zlib` for new shards"
        ) from error
    return Deflater(lambda rows: zlib_compress(rows, 1), crc32)


def _zlib() -> Deflater:
    def deflate(rows: memoryview) -> bytes:
        work = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_RLE)
        return work.compress(rows) + work.flush()

    return Deflater(deflate, zlib.crc32)


DEFLATERS = {"libdeflate": _libdeflate, "zlib": _zlib}


def _by_pillow(
    pixels: Pixels, form: str, options: Mapping[str, Any], profile: bytes | None
) -> bytes:
    stream = io.BytesIO()
    more = {} if profile is None else {"icc_profile": profile}
    Image.fromarray(pixels).save(stream, form.upper(), **options, **more)
    return stream.getvalue()
