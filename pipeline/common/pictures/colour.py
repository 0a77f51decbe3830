"""Colour profiles (ICC): which ones can be used, and conversion to sRGB."""

from __future__ import annotations

import functools
import hashlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

# The colour space of the samples that a profile describes, by Pillow's mode.
SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}

# SHA-256 of the profiles of sRGB that most files carry. From them, conversion leaves every colour
# as it is, except cyans with less red than `RED` and as much green as `GREEN`, which it may round.
SRGB = {
    "2b3aa1645779a9e634744faf9b01e9102b0c9b88fd6deced7934df86b949af7e",  # Hewlett-Packard
    "3f6d674174f3804eb0dabdac90ae17486e898c5063a66f861c116ea033da8301",  # the same, other texts
    "a5371b9dce12310e48b2dd8684a15ef1a36b931af156e60f8ee9065f69687488",
    "a8e4d0dcd76a6ca2dff3aa8dbd251d465bc826836807ec0dbb3e790ff3d54fbf",
    "c4c1153168e817be61a676e403c370ce2c485a6bd54fbb59c3850845cfefad00",  # color.org
    "9d0774f002bc0238173d688dab55ecf2b093f8a257310e05b5887c6722c8798d",  # Nikon
    "674784321fec65ae80128004b27b883f020442c96f0481e525713bbf4b1a70c6",  # Canon
}
RED, GREEN = 16, 224


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
    if profile is None or (image.mode == "RGB" and same_in_srgb(np.asarray(image), profile)):
        return image.convert("RGB")
    try:
        converted = ImageCms.applyTransform(image, _transform(profile, image.mode))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image.convert("RGB")
    assert converted is not None  # only for `inPlace`
    return converted


def same_in_srgb(pixels: npt.NDArray[np.uint8], profile: bytes) -> bool:
    """Return whether conversion to sRGB is known to change none of `pixels`, uint8 (H, W, 3)."""
    if hashlib.sha256(profile).hexdigest() not in SRGB:
        return False
    return not ((pixels[:, :, 0] < RED) & (pixels[:, :, 1] >= GREEN)).any()


@functools.lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """Return the transform from `profile`: many pictures share one, and making it takes long."""
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
