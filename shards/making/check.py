"""Looks at a picture's bytes: what it is, and whether it can be used.

A JPEG, which most pictures are, is decoded by libjpeg-turbo at an eighth of its size: that reads
every coefficient, where damage shows, and saves only the inverse transform, which cannot fail.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass

import simplejpeg
from PIL import Image

from shards.making.jpeg import jpeg_header
from shards.options import MAX_AREA, Options

# What libjpeg says of files that are odd but whole, or of kinds it was not built for.
HARMLESS = ("extraneous bytes", "Invalid SOS parameters", "nsupported")
# Reasons for a reject.
NOT_A_PICTURE = "not a picture"
DAMAGED = "damaged"
TOO_SMALL = "too small"
TOO_LARGE = "too large"
TOO_LONG = "too elongated"
MISSING = "missing"
UNREADABLE = "unreadable"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
DUPLICATES = {"exact": DUPLICATE, "near": NEAR_DUPLICATE}

ENDINGS = {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2"}
ORIENTATION = 0x0112


class RejectedError(Exception):
    """A picture that is not used: `reason` is one of the few above, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Facts:
    """What a picture is. Zero width and height: not looked at.

    `format` is Pillow's name in lower case, `mode` Pillow's mode, `orientation` EXIF's (1 is
    upright).
    """

    format: str
    width: int = 0
    height: int = 0
    mode: str = ""
    orientation: int = 1

    @property
    def ending(self) -> str:
        """The file name's ending that decoders know the format by."""
        return ENDINGS.get(self.format, self.format)


def examine(data: bytes, options: Options, ending: str = "") -> Facts:
    """Return what the picture `data` is; `ending` is its file name's, for check "none".

    Raises:
        RejectedError: it is not a picture, is damaged, or is outside the limits of `options`.
    """
    facts = _quick_facts(data)
    if facts is not None:
        _within(facts, options)
        if options.check != "full" or _jpeg_is_sound(data, facts.mode):
            return facts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures; our own limit decides
        return _examine_by_pillow(data, options, ending)


def _quick_facts(data: bytes) -> Facts | None:
    """Return what an ordinary JPEG is, or None where Pillow must be asked."""
    header = jpeg_header(data)
    if header is None or header[0] * header[1] > MAX_AREA:
        return None
    return Facts("jpeg", *header)


def _examine_by_pillow(data: bytes, options: Options, ending: str) -> Facts:
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise RejectedError(TOO_LARGE, _first_line(error)) from None
    except Exception as error:
        if options.check == "none":
            return Facts(ending or "bin")
        raise RejectedError(NOT_A_PICTURE, _first_line(error)) from None
    facts = _facts(image)
    _within(facts, options)
    if options.check == "full":
        _decode(data, image, facts)
    return facts


def _facts(image: Image.Image) -> Facts:
    # Pillow calls a JPEG with more pictures behind the first one MPO.
    name = (image.format or "").lower().replace("mpo", "jpeg")
    return Facts(name, image.width, image.height, image.mode, _orientation(image))


def _orientation(image: Image.Image) -> int:
    try:
        value = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing against the picture
        return 1
    return value if 1 <= value <= 8 else 1


def _within(facts: Facts, options: Options) -> None:
    width, height = facts.width, facts.height
    short, long = sorted((width, height))
    size = f"{width} x {height}"
    if short < max(options.min_side, 1):
        raise RejectedError(TOO_SMALL, f"{size}, the shorter side is under {options.min_side}")
    if width * height > options.max_area:
        raise RejectedError(TOO_LARGE, f"{size}, over {options.max_area} pixels")
    if options.max_aspect and long > options.max_aspect * short:
        raise RejectedError(TOO_LONG, f"{size}, over {options.max_aspect:g} to 1")


def _decode(data: bytes, image: Image.Image, facts: Facts) -> None:
    if facts.format == "jpeg" and _jpeg_is_sound(data, facts.mode):
        return
    try:
        image.load()
    except Exception as error:
        raise RejectedError(DAMAGED, _first_line(error)) from None


def _jpeg_is_sound(data: bytes, mode: str) -> bool:
    """Return whether every coefficient can be read; False: ask another decoder.

    Raises:
        RejectedError: the data is damaged.
    """
    space = "CMYK" if mode == "CMYK" else "GRAY"
    try:
        simplejpeg.decode_jpeg(data, colorspace=space, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        words = _first_line(error)
        if any(harmless in words for harmless in HARMLESS):
            return False
        raise RejectedError(DAMAGED, words) from None
    return True


def _first_line(error: Exception) -> str:
    """Return what `error` says, without addresses of objects."""
    words = str(error).partition("\n")[0]
    return re.sub(r"<[^>]* object at 0x[0-9a-f]+>", "the data", words) or type(error).__name__
