"""Decodes a picture's bytes to uint8 RGB, the whole picture or a crop.

Pictures are read by the policy of `pipeline.common.pictures`: upright, as a codec would code them,
without alpha and profile, grey repeated in three channels. JPEGs take a quicker way to the same
pixels. Legend: H height, W width, S the crop's side, in pixels, of the upright picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.common.addresses import hash_words
from pipeline.common.pictures.jpeg import SIGNATURE as JPEG
from pipeline.common.pictures.limits import MAX_PIXELS
from pipeline.common.pictures.orientation import (
    jpeg_orientation,
    stored_region,
    turned,
    upright_size,
)
from shards.purposes import CROP
from shards.reading import turbo

Pixels = npt.NDArray[np.uint8]

# A JPEG without its end here was cut off: that must not depend on where the crop lies.
JPEG_END, JPEG_TAIL = b"\xff\xd9", 32


class BrokenPictureError(ValueError):
    """A picture can't be decoded: its sample is skipped and counted."""


@dataclass(frozen=True)
class CropDraw:
    """Three 64-bit draws that place a crop in a picture of any size, and turn it round or not."""

    vertical: int
    horizontal: int
    flip: bool

    @classmethod
    def at(cls, seed: int, epoch: int, position: int, flip: bool = True) -> CropDraw:
        """Return the draw for a position of an epoch; flips come with probability 1/2."""
        key = hash_words(seed, epoch, position, CROP)
        return cls(hash_words(key, 0), hash_words(key, 1), flip and bool(hash_words(key, 2) & 1))

    def corner(self, height: int, width: int, side: int) -> tuple[int, int]:
        """Return the crop's top and left, uniform over all places; 0 in a smaller picture."""
        top = self.vertical % max(height - side + 1, 1)
        return top, self.horizontal % max(width - side + 1, 1)


def decode(data: bytes) -> Pixels:
    """Return the whole picture, uint8 (H, W, 3).

    Raises:
        BrokenPictureError: the bytes are refused: not a whole picture, too large, or the like.
    """
    if data.startswith(JPEG):
        pixels = _decode_jpeg(data)
        if pixels is not None:
            return pixels
    return _decode_any(data)


def decode_crop(data: bytes, side: int, draw: CropDraw) -> Pixels:
    """Return the crop that `draw` places, uint8 (h, w, 3), not yet flipped.

    h and w are S, or the picture's own where that is smaller.

    Raises:
        BrokenPictureError: as `decode`.
    """
    pixels = _crop_jpeg(data, side, draw)
    if pixels is None:
        whole = decode(data)
        top, left = draw.corner(whole.shape[0], whole.shape[1], side)
        pixels = whole[top : top + side, left : left + side]
    return pixels


def filled(pixels: Pixels, side: int) -> Pixels:
    """Return `pixels` (h, w, 3), h and w at most S, mirrored right and down to (S, S, 3)."""
    height, width = pixels.shape[:2]
    if height == side and width == side:
        return pixels
    return np.pad(pixels, ((0, side - height), (0, side - width), (0, 0)), mode="symmetric")


def _crop_jpeg(data: bytes, side: int, draw: CropDraw) -> Pixels | None:
    """Return a JPEG's crop, at most (S, S, 3), decoding little else; None: decode it whole."""
    if not data.startswith(JPEG) or JPEG_END not in data[-JPEG_TAIL:]:
        return None
    try:
        stored = turbo.size(data)
        _check_size(*stored)
        orientation = jpeg_orientation(data)
        height, width = upright_size(*stored, orientation)
        top, left = draw.corner(height, width, side)
        rows, columns = min(side, height), min(side, width)
        region = stored_region(*stored, orientation, top, left, rows, columns)
        return turned(turbo.crop(data, *region), orientation)
    except turbo.CannotCropError:
        return None


def _decode_jpeg(data: bytes) -> Pixels | None:
    """Return the picture by libjpeg-turbo; None where Pillow may know better (CMYK, warnings)."""
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width)
        if space not in ("YCbCr", "Gray", "RGB"):
            return None
        stored = np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
        return np.ascontiguousarray(turned(stored, jpeg_orientation(data)))
    except BrokenPictureError:
        raise
    except ValueError:
        return None


def _decode_any(data: bytes) -> Pixels:
    from pipeline.common import pictures

    try:
        return pictures.read_coded(data)
    except pictures.PictureError as error:
        raise BrokenPictureError(str(error)) from error


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise BrokenPictureError(f"{width}x{height} is more than {MAX_PIXELS} pixels")
