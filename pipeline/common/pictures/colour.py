"""Colour profiles (ICC): which ones can be used, and conversion to sRGB."""

from __future__ import annotations

import functools
import io
from typing import Any

from PIL import Image, ImageCms

# The colour space of the samples that a profile describes, by Pillow's mode.
SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}


def usable_profile(profile: Any, mode: str) -> bytes | None:
    """Return the ICC profile `profile` if it is whole and describes samples of `mode`."""
    if not isinstance(profile, bytes) or not profile or mode not in SPACES:
        return None
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return profile if space.strip() == SPACES[mode] else None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return `image` (RGB, L or CMYK) in sRGB, by relative colorimetry from its `profile`.

    Without a profile, or with one that can't be converted from, RGB and grey count as sRGB and
    CMYK is converted by Pillow's formula.
    """
    if profile is None:
        return image.convert("RGB")
    try:
        converted = ImageCms.applyTransform(image, _transform(profile, image.mode))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")
    assert converted is not None  # only for `inPlace`
    return converted


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """Return the transform from `profile`: many pictures share one, and making it takes long."""
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
