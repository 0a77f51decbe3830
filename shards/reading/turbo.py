"""Decodes a part of a JPEG alone, by libjpeg-turbo 3.

It skips the rows above a crop and the columns beside it, and stops below it.

The library is the system's, or the copy in the `turbojpeg` package; where neither is there, whole
pictures are decoded instead. Its interface is libjpeg-turbo's `turbojpeg.h`, version 3.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

# Values of `turbojpeg.h`.
INIT_DECOMPRESS = 1
PIXELS_RGB = 0
PARAM_STOP_ON_WARNING, PARAM_SUBSAMPLING, PARAM_WIDTH, PARAM_HEIGHT, PARAM_SPACE = 0, 4, 5, 6, 8
SPACE_RGB, SPACE_YCBCR, SPACE_GREY = range(3)
# Width in pixels of a block of all components, by subsampling: 444, 422, 420, grey, 440, 411, 441.
BLOCK_WIDTHS = (8, 16, 16, 8, 8, 32, 8)


class _Region(ctypes.Structure):
    """A crop: left, top, width, height in pixels; `left` is a multiple of the block's width."""

    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int))


class CannotCropError(ValueError):
    """A JPEG that can't be decoded in part, because it is damaged or of a rare kind."""


@functools.cache
def library() -> Any | None:
    """Return libjpeg-turbo's library, version 3 or later; None where there is none."""
    for name in _candidates():
        try:
            found = ctypes.CDLL(name)
            _declare(found)
        except (OSError, AttributeError):  # not loadable, or older than version 3
            continue
        return found
    return None


def size(data: bytes) -> tuple[int, int]:
    """Return height and width of a JPEG, in pixels.

    Raises:
        CannotCropError: as `crop`.
    """
    with _opened(data) as (tj, handle):
        return tj.tj3Get(handle, PARAM_HEIGHT), tj.tj3Get(handle, PARAM_WIDTH)


def crop(data: bytes, top: int, left: int, height: int, width: int) -> Pixels:
    """Return rows top to top + height, columns left to left + width, uint8 (height, width, 3).

    The region must lie within the picture. The pixels are those of the whole picture's decoding:
    where chroma is subsampled, a block more is decoded at each side, because upsampling looks one
    column aside. Damage outside of the crop's rows goes unnoticed.

    Raises:
        CannotCropError: no library, damaged data, or neither RGB, YCbCr nor grey.
    """
    with _opened(data) as (tj, handle):
        block = BLOCK_WIDTHS[tj.tj3Get(handle, PARAM_SUBSAMPLING)]
        margin = block if block > 8 else 0
        first = max(left - margin, 0) // block * block
        last = min(left + width + margin, tj.tj3Get(handle, PARAM_WIDTH))
        pixels = np.empty((height, last - first, 3), dtype=np.uint8)
        region = _Region(first, top, last - first, height)
        place = pixels.ctypes.data
        if tj.tj3SetCroppingRegion(handle, region) or tj.tj3Decompress8(
            handle, data, len(data), place, 0, PIXELS_RGB
        ):
            raise CannotCropError(tj.tj3GetErrorStr(handle).decode(errors="replace"))
    return pixels[:, left - first : left - first + width]


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, int]]:
    """Give the library and a handle that has read the header of `data`."""
    tj = library()
    if tj is None:
        raise CannotCropError("libjpeg-turbo 3 is not on this machine")
    handle = tj.tj3Init(INIT_DECOMPRESS)
    try:
        tj.tj3Set(handle, PARAM_STOP_ON_WARNING, 1)
        if tj.tj3DecompressHeader(handle, data, len(data)):
            raise CannotCropError(tj.tj3GetErrorStr(handle).decode(errors="replace"))
        known = (SPACE_RGB, SPACE_YCBCR, SPACE_GREY)
        if tj.tj3Get(handle, PARAM_SPACE) not in known or tj.tj3Get(handle, PARAM_SUBSAMPLING) < 0:
            raise CannotCropError("neither RGB, YCbCr nor grey, or unusual subsampling")
        yield tj, handle
    finally:
        tj.tj3Destroy(handle)


def _candidates() -> Iterator[str]:
    system = find_library("turbojpeg")
    if system:
        yield system
    package = importlib.util.find_spec("turbojpeg")
    if package is None or package.origin is None:
        return
    beside = Path(package.origin).parent
    for pattern in (
        "turbojpeg.libs/libturbojpeg*",
        "turbojpeg.dylibs/libturbojpeg*",
        "turbojpeg-*.dll",
    ):
        yield from (str(path) for path in sorted(beside.glob(pattern)))


def _declare(tj: Any) -> None:
    """State argument types; raises AttributeError where a function is missing."""
    handle, data, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    tj.tj3Init.argtypes, tj.tj3Init.restype = [number], handle
    tj.tj3Destroy.argtypes, tj.tj3Destroy.restype = [handle], None
    tj.tj3Set.argtypes = [handle, number, number]
    tj.tj3Get.argtypes = [handle, number]
    tj.tj3DecompressHeader.argtypes = [handle, data, ctypes.c_size_t]
    tj.tj3SetCroppingRegion.argtypes = [handle, _Region]
    tj.tj3Decompress8.argtypes = [handle, data, ctypes.c_size_t, ctypes.c_void_p, number, number]
    tj.tj3GetErrorStr.argtypes, tj.tj3GetErrorStr.restype = [handle], data
