"""Pixels of any picture as upright 8-bit sRGB, for whoever does not keep the original bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels of `image`: uint8 (H, W, 3), sRGB, turned as its EXIF says.

    Transparent pixels are shown on white. 16-bit grey loses its lower byte. An ICC profile is
    converted by relative colorimetry; one that is damaged is taken for sRGB.
    """
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return _deep(np.asarray(image))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(ground, layer).convert("RGB")
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if profile:
        image = _converted(image, profile)
    return np.asarray(image.convert("RGB"))


def _deep(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return grey values of more than 8 bits (0 to 65535, as Pillow gives them) as RGB."""
    grey = (np.clip(values, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted if converted is not None else image
