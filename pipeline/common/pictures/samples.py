"""Pillow's modes to arrays of samples: grey or RGB, 8 or 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.common.pictures.colour import to_srgb, usable_profile
from pipeline.common.pictures.errors import PictureError, Refusal

Bytes = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
GREY = ("1", "L", "LA", "La")
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "LAB", "YCbCr", "HSV")


def check_mode(mode: str) -> None:
    """Raise `PictureError` where nothing says what samples of Pillow's `mode` mean."""
    if mode.startswith("F"):
        raise PictureError(
            Refusal.UNSUPPORTED,
            "floating-point samples: no value is known to be white, so convert it to 8 or 16 bits",
        )
    if mode not in (*SIXTEEN_BITS, *GREY, *COLOUR, "I", "CMYK"):
        raise PictureError(Refusal.UNSUPPORTED, f"samples of Pillow's mode {mode} are not read")


def check_samples(image: Image.Image) -> None:
    """Raise `PictureError` where `samples_of` would, for a loaded picture."""
    check_mode(image.mode)
    if image.mode == "I":
        _of_integers(image)


def samples_of(image: Image.Image) -> Samples:
    """Return the samples of a loaded picture, uint8 or uint16, (H, W) for grey or (H, W, 3).

    Raises:
        PictureError: they have no known range.
    """
    check_mode(image.mode)
    if image.mode in SIXTEEN_BITS:
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        return _of_integers(image)
    if image.mode == "CMYK":
        return _array(to_srgb(image, usable_profile(image.info.get("icc_profile"), "CMYK")))
    plain = image.convert(PREMULTIPLIED.get(image.mode, image.mode))
    return _array(plain.convert("L" if image.mode in GREY else "RGB"))


def alpha_of(image: Image.Image) -> Bytes | None:
    """Return alpha (H, W) of a loaded picture; None where all of it is opaque."""
    transparent = image.info.get("transparency")
    if image.mode in SIXTEEN_BITS or image.mode == "I":
        if not isinstance(transparent, int):
            return None
        alpha = np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)
    elif image.has_transparency_data:
        alpha = _array(image.convert("RGBA").getchannel("A"))
    else:
        return None
    return None if alpha.min(initial=255) == 255 else alpha


def to_eight_bits(samples: Samples) -> Bytes:
    """Return `samples` as uint8; 16-bit samples become the nearest value, round(v / 257)."""
    if samples.dtype == np.uint8:
        return samples.astype(np.uint8, copy=False)
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _of_integers(image: Image.Image) -> Samples:
    """Return 32-bit integers as the 8 or 16 bits that they fit."""
    values: npt.NDArray[Any] = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise PictureError(
            Refusal.UNSUPPORTED,
            f"32-bit samples from {low} to {high}: no value is known to be white, so convert it to "
            "8 or 16 bits",
        )
    # A 16-bit PGM comes as 32 bits too, and says its range.
    known = image.format == "PPM"
    return values.astype(np.uint16) if known or high > 255 else values.astype(np.uint8)


def _array(image: Image.Image) -> Bytes:
    return np.asarray(image, dtype=np.uint8)
