"""Bytes of a picture to uint8 RGB: the whole of it, or a crop.

Pictures are taken as they are stored: an EXIF orientation is not applied, transparency is dropped,
greyscale is repeated in three channels. Legend: H height, W width, S the crop's side, in pixels.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shards.reading import turbo
from shards.streaming.order import CROP, hashed

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]

# A picture above this is refused before memory is taken for it.
MAX_PIXELS = 1 << 28
JPEG_MAGIC = b"\xff\xd8\xff"
# A JPEG without its end here was cut off: that must not depend on where the crop lies.
JPEG_END, JPEG_TAIL = b"\xff\xd9", 32


class BrokenPictureError(ValueError):
    """These bytes are not a picture that can be decoded: the sample is skipped and counted."""


@dataclass(frozen=True)
class CropDraw:
    """Three 64-bit draws that place a crop in a picture of any size, and turn it round or not."""

    vertical: int
    horizontal: int
    flip: bool

    @classmethod
    def at(cls, seed: int, epoch: int, position: int, flip: bool = True) -> CropDraw:
        """Return the draw for a position of an epoch; flips come with probability 1/2."""
        key = hashed(seed, epoch, position, CROP)
        return cls(hashed(key, 0), hashed(key, 1), flip and bool(hashed(key, 2) & 1))

    def corner(self, height: int, width: int, side: int) -> tuple[int, int]:
        """Return the crop's top and left, uniform over all places; 0 in a smaller picture."""
        top = self.vertical % max(height - side + 1, 1)
        return top, self.horizontal % max(width - side + 1, 1)


def decode(data: bytes) -> Pixels:
    """Return the whole picture, uint8 (H, W, 3).

    Raises:
        BrokenPictureError: the bytes are not a complete picture, or have over 2**28 pixels.
    """
    if data.startswith(JPEG_MAGIC):
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
    """Return a JPEG's crop, at most (S, S, 3), by decoding little else; None: decode it whole."""
    if not data.startswith(JPEG_MAGIC) or JPEG_END not in data[-JPEG_TAIL:]:
        return None
    try:
        height, width = turbo.size(data)
        _check_size(height, width)
        top, left = draw.corner(height, width, side)
        return turbo.crop(data, top, left, min(side, height), min(side, width))
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
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
    except BrokenPictureError:
        raise
    except ValueError:
        return None


def _decode_any(data: bytes) -> Pixels:
    import PIL.Image

    try:
        with warnings.catch_warnings():
            # Our own limit is checked below, before any pixel is decoded.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(data)) as picture:
                _check_size(picture.height, picture.width)
                return _rgb(picture)
    except BrokenPictureError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise BrokenPictureError(f"{type(error).__name__}: {error}") from error


def _rgb(picture: Image) -> Pixels:
    """Return Pillow's picture as uint8 RGB, of 16-bit samples the upper eight bits."""
    if picture.mode.startswith("I"):
        grey = np.clip(np.asarray(picture), 0, 65535).astype(np.uint16) >> 8
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.mode == "F":
        raise BrokenPictureError("its pixels are floating-point numbers of unknown range")
    return np.asarray(picture.convert("RGB"))


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise BrokenPictureError(f"{width}x{height} is more than {MAX_PIXELS} pixels")
