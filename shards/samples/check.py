"""Checks a picture's bytes: its format and size, and whether it can be used.

A JPEG, which most pictures are, is decoded by libjpeg-turbo at an eighth of its size: that reads
every coefficient, where damage shows, and saves only the inverse transform, which cannot fail.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from pipeline.common.pictures import PictureError, Refusal, opened
from pipeline.common.pictures.errors import first_line
from pipeline.common.pictures.formats import usual_ending
from pipeline.common.pictures.limits import MAX_PIXELS
from pipeline.common.pictures.opening import header_of, load
from pipeline.common.pictures.orientation import orientation_of
from pipeline.common.pictures.samples import check_mode, check_samples
from shards.samples.jpeg import jpeg_header

# Messages of libjpeg about files that are odd but whole, or of kinds that it was not built for.
HARMLESS = ("extraneous bytes", "Invalid SOS parameters", "nsupported")
PROFILE = b"ICC_PROFILE\0"  # how a JPEG's segments with a colour profile start
# Reasons for a reject.
DAMAGED = str(Refusal.DAMAGED)
TOO_SMALL = "too small"
TOO_LARGE = str(Refusal.TOO_LARGE)
TOO_LONG = "too elongated"
MISSING = "missing"
UNREADABLE = "unreadable"
CHANGED = "changed"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near duplicate"
# Reasons for a reject that remain with the check "none".
KEPT_UNCHECKED = frozenset({Refusal.NOT_A_PICTURE, Refusal.UNSUPPORTED})
DUPLICATES = {"exact": DUPLICATE, "near": NEAR_DUPLICATE}


class RejectedError(Exception):
    """A picture that is not used: `reason` is one of those above, `detail` says more."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Facts:
    """Facts about a picture. Width and height are 0 where they were not looked at.

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
        return usual_ending(self.format)


class Limits(Protocol):
    """What is asked of a picture; `shards.options.Options` has it."""

    @property
    def check(self) -> str:
        """How closely it is looked at: "full", "header" or "none"."""

    @property
    def min_side(self) -> int:
        """Pixels that its shorter side must have."""

    @property
    def max_area(self) -> int:
        """Pixels that it may have."""

    @property
    def max_aspect(self) -> float:
        """Longer side over shorter side that it may have; 0: any."""


def examine(data: bytes, options: Limits, ending: str = "", decoded: bool = False) -> Facts:
    """Return facts about the picture `data`; `ending` is its file name's, for check "none".

    What is `decoded` by `plain_pixels` anyway is not decoded here.

    Raises:
        RejectedError: it is not a picture, is damaged, or is outside the limits of `options`.
    """
    facts = _quick_facts(data)
    if facts is not None:
        _within(facts, options)
        if options.check != "full" or (decoded and is_plain(facts.format, facts.mode, data)):
            return facts
        if _jpeg_is_sound(data, facts.mode):
            return facts
    try:
        return _examine_by_pillow(data, options, decoded)
    except PictureError as error:
        if options.check == "none" and error.refusal in KEPT_UNCHECKED:
            return Facts(ending or "bin")
        raise RejectedError(str(error.refusal), error.detail) from None


def _quick_facts(data: bytes) -> Facts | None:
    """Return facts about an ordinary JPEG, or None where Pillow must be asked."""
    header = jpeg_header(data)
    if header is None or header[0] * header[1] > MAX_PIXELS:
        return None
    return Facts("jpeg", *header)


def _examine_by_pillow(data: bytes, options: Limits, decoded: bool) -> Facts:
    """Return facts about the picture `data`; raises PictureError too."""
    with opened(data) as image:
        facts = _facts(image)
        _within(facts, options)
        if options.check == "none":
            return facts
        check_mode(image.mode)
        if options.check == "header" or (decoded and is_plain(facts.format, facts.mode, data)):
            return facts
        if facts.format != "jpeg" or not _jpeg_is_sound(data, facts.mode):
            load(image)
            check_samples(image)
        return replace(facts, orientation=orientation_of(image))


def _facts(image: Image.Image) -> Facts:
    header = header_of(image)
    name = header.format.lower()
    return Facts(name, header.width, header.height, header.mode, header.orientation)


def _within(facts: Facts, options: Limits) -> None:
    width, height = facts.width, facts.height
    short, long = sorted((width, height))
    size = f"{width} x {height}"
    if short < max(options.min_side, 1):
        raise RejectedError(TOO_SMALL, f"{size}, the shorter side is under {options.min_side}")
    if width * height > options.max_area:
        raise RejectedError(TOO_LARGE, f"{size}, over {options.max_area} pixels")
    if options.max_aspect and long > options.max_aspect * short:
        raise RejectedError(TOO_LONG, f"{size}, over {options.max_aspect:g} to 1")


def is_plain(form: str, mode: str, data: bytes) -> bool:
    """Return whether `data` is a JPEG of RGB, or of grey without a colour profile.

    `form` and `mode` are its `Facts`.
    """
    return form == "jpeg" and (mode == "RGB" or (mode == "L" and not has_profile(data)))


def has_profile(data: bytes) -> bool:
    """Return whether the JPEG `data` may have a colour profile."""
    return PROFILE in data


def plain_pixels(data: bytes, full: bool) -> npt.NDArray[np.uint8] | None:
    """Return the pixels, uint8 (H, W, 3), of a JPEG that `is_plain`, as they are stored.

    None: ask another decoder.

    Raises:
        RejectedError: the data is damaged, and the check is `full`; otherwise Pillow may take it.
    """
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError as error:
        if full:
            _refuse_damage(error)
        return None


def _jpeg_is_sound(data: bytes, mode: str) -> bool:
    """Return whether every coefficient can be read; False: ask another decoder.

    Raises:
        RejectedError: the data is damaged.
    """
    space = "CMYK" if mode == "CMYK" else "GRAY"
    try:
        simplejpeg.decode_jpeg(data, colorspace=space, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        _refuse_damage(error)
        return False
    return True


def _refuse_damage(error: ValueError) -> None:
    """Raise `RejectedError` for a message of libjpeg, unless it is harmless."""
    words = first_line(error)
    if not any(harmless in words for harmless in HARMLESS):
        raise RejectedError(DAMAGED, words) from None
