"""Reads pictures: their samples upright, and what goes beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.common.pictures.colour import to_srgb, usable_profile
from pipeline.common.pictures.limits import MAX_PIXELS
from pipeline.common.pictures.opening import Header, header_of, load, opened
from pipeline.common.pictures.orientation import turned
from pipeline.common.pictures.samples import (
    GREY,
    SIXTEEN_BITS,
    Bytes,
    Samples,
    alpha_of,
    check_mode,
    samples_of,
    to_eight_bits,
)


@dataclass(frozen=True)
class Picture:
    """An upright picture.

    Attributes:
        samples: uint8 or uint16, (H, W) for grey, (H, W, 3) for RGB.
        alpha: uint8 (H, W), 0 is transparent; None: all is opaque.
        profile: ICC profile of `samples`; None: they count as sRGB.
        header: what the file says of itself.
        converted: what was done to the stored samples, in words.
    """

    samples: Samples
    alpha: Bytes | None
    profile: bytes | None
    header: Header
    converted: tuple[str, ...] = ()

    def coded(self) -> Bytes:
        """Return the samples that a codec codes, uint8 RGB (H, W, 3)."""
        return _rgb(self.samples)

    def in_srgb(self) -> Samples:
        """Return the samples in sRGB: converted, in 8 bits, if they have a profile."""
        if self.profile is None:
            return self.samples
        image = to_srgb(Image.fromarray(to_eight_bits(self.samples)), self.profile)
        return np.asarray(image.convert("L") if self.samples.ndim == 2 else image)

    def shown(self) -> Bytes:
        """Return what a viewer shows, uint8 sRGB (H, W, 3): colours managed, on white."""
        grey = self.samples.ndim == 2
        image = Image.fromarray(to_eight_bits(self.samples))
        if self.alpha is not None:
            layer = image.convert("RGB")
            layer.putalpha(Image.fromarray(self.alpha))
            ground = Image.new("RGBA", layer.size, "white")
            image = Image.alpha_composite(ground, layer).convert("L" if grey else "RGB")
        return np.asarray(to_srgb(image, self.profile))


def read(source: bytes | Path, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture from its bytes or its file.

    Raises:
        PictureError: it is refused: see the table of this package.
        OSError: the file is not there, or cannot be read.
    """
    with opened(source, max_pixels) as image:
        return _picture(image)


def thumbnail(source: bytes | Path, side: int) -> Bytes:
    """Return what a viewer shows, uint8 sRGB (H, W, 3), of `side` pixels a side or more.

    A JPEG is decoded at a fraction of its size. Raises as `read`.
    """
    with opened(source) as image:
        image.draft(None, (side, side))
        return _picture(image).shown()


def read_coded(source: bytes | Path, max_pixels: int = MAX_PIXELS) -> Bytes:
    """Return `read(source, max_pixels).coded()`, without reading what it leaves out."""
    with opened(source, max_pixels) as image:
        check_mode(image.mode)
        load(image)
        return _rgb(_upright(samples_of(image), header_of(image)))


def has_profile(image: Image.Image) -> bool:
    """Whether `read` keeps a profile of the picture, told from its header."""
    grey = image.mode in (*GREY, *SIXTEEN_BITS, "I")
    return _usable(image, grey) is not None


def picture_of(image: Image.Image) -> Picture:
    """Return a picture that is in memory, as it is: not turned. Raises `PictureError`."""
    check_mode(image.mode)
    samples = samples_of(image)
    header = Header(image.format or "", image.width, image.height, image.mode, 1)
    return Picture(samples, alpha_of(image), _profile(image, samples), header)


def _picture(image: Image.Image) -> Picture:
    check_mode(image.mode)
    load(image)
    header = header_of(image)
    samples, alpha = samples_of(image), alpha_of(image)
    profile = _profile(image, samples)
    done = _words(image, header, samples, alpha, profile)
    if alpha is not None:
        alpha = _upright(alpha, header)
    return Picture(_upright(samples, header), alpha, profile, header, done)


def _rgb(samples: Samples) -> Bytes:
    eight = to_eight_bits(samples)
    return np.repeat(eight[:, :, None], 3, axis=2) if eight.ndim == 2 else eight


def _upright(samples: npt.NDArray[Any], header: Header) -> Any:
    return np.ascontiguousarray(turned(samples, header.orientation))


def _profile(image: Image.Image, samples: Samples) -> bytes | None:
    """Return the profile of the samples, which those that were converted do not have."""
    return _usable(image, samples.ndim == 2)


def _usable(image: Image.Image, grey: bool) -> bytes | None:
    if image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        return None
    return usable_profile(image.info.get("icc_profile"), "L" if grey else "RGB")


def _words(
    image: Image.Image,
    header: Header,
    samples: Samples,
    alpha: Bytes | None,
    profile: bytes | None,
) -> tuple[str, ...]:
    """Return what reading did to the picture."""
    words = []
    if header.orientation != 1:
        words.append(f"turned upright from orientation {header.orientation}")
    if image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        words.append(f"{image.mode} converted to RGB")
    if image.mode == "I" and image.format != "PPM":
        words.append(f"32-bit samples taken for {8 * samples.itemsize}-bit ones")
    if image.info.get("icc_profile") and profile is None and image.mode != "CMYK":
        words.append("its colour profile is not for these samples, or damaged, and left out")
    if alpha is not None and image.mode in SIXTEEN_BITS:
        words.append("its transparent value made an alpha channel")
    if getattr(image, "is_animated", False):
        words.append("the first frame taken")
    return tuple(words)
