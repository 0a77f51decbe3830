"""Which way up a picture is stored, and how to turn its pixels upright.

Orientations are EXIF's: 1 is upright; 2, 3 and 4 are mirrored, turned by 180 degrees, and both;
5 to 8 have rows and columns exchanged.
"""

from __future__ import annotations

import io
from typing import Any, TypeVar

import numpy.typing as npt
from PIL import Image

TAG = 0x0112
ROWS_FLIPPED, COLUMNS_FLIPPED = frozenset({3, 4, 6, 7}), frozenset({2, 3, 7, 8})
Samples = TypeVar("Samples", bound=npt.NDArray[Any])
# The markers of a JPEG's segments, and the start of one with EXIF.
SCAN, APP1 = 0xDA, 0xE1
WITHOUT_LENGTH = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xDA)})
EXIF = b"Exif\0\0"
# EXIF's types, by the bytes of a number; text, integers, fractions.
SHORT = 3
SIZES = {1: 1, 2: 1, SHORT: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8}


def orientation_of(image: Image.Image) -> int:
    """Return the orientation that the metadata read so far gives `image`; 1 where it is damaged.

    A PNG may have its EXIF behind the pixels: load it first. TIFFs are turned by Pillow.
    """
    told = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
    if image.format == "TIFF" or not any(name in image.info for name in told):
        return 1  # for a PNG, Pillow would decode all of it to find out
    try:
        value = image.getexif().get(TAG, 1)
    except Exception:  # damaged metadata raises nearly anything, and says nothing of the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def shield_tiff(image: Image.Image) -> None:
    """Keep damaged metadata of a TIFF from ending its decoding, which turns it upright."""
    exif = Image.Exif()
    # Pillow's type for an opened picture lacks what only TIFF pictures have.
    value = image.tag_v2.get(TAG, 1)  # type: ignore[attr-defined]
    exif[TAG] = value if isinstance(value, int) else 1
    # Pillow asks the picture itself for its EXIF when it has decoded it; a method is replaced.
    image.getexif = lambda: exif  # type: ignore[method-assign]


def turned(samples: Samples, orientation: int) -> Samples:
    """Return `samples` (H, W, ...) upright, as a view: (W, H, ...) for orientations 5 to 8."""
    rows = slice(None, None, -1) if orientation in ROWS_FLIPPED else slice(None)
    columns = slice(None, None, -1) if orientation in COLUMNS_FLIPPED else slice(None)
    flipped = samples[rows, columns]
    # To numpy's types, a view of an array of two types is of neither.
    return flipped.swapaxes(0, 1) if orientation > 4 else flipped  # type: ignore[return-value]


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Return height and width of a picture stored as (height, width), once it is upright."""
    return (width, height) if orientation > 4 else (height, width)


def stored_region(
    height: int, width: int, orientation: int, top: int, left: int, rows: int, columns: int
) -> tuple[int, int, int, int]:
    """Return top, left, rows and columns in the stored picture (height, width) of a region.

    The region is given in the upright picture; `turned` of what is stored there is the region.
    """
    if orientation > 4:
        top, left, rows, columns = left, top, columns, rows
    if orientation in ROWS_FLIPPED:
        top = height - top - rows
    if orientation in COLUMNS_FLIPPED:
        left = width - left - columns
    return top, left, rows, columns


def jpeg_orientation(data: bytes) -> int:
    """Return the orientation of the JPEG `data`, as `orientation_of` would, in microseconds."""
    told, in_xmp, place = 0, False, 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        start, end = place + 4, place + 2 + size
        if marker == SCAN:
            return told or (_by_pillow(data) if in_xmp else 1)
        if marker in WITHOUT_LENGTH:
            break
        if marker == APP1 and data.startswith(EXIF, start):
            value = _of_exif(data[start + len(EXIF) : end])
            if told or value is None:
                break
            told = value
        in_xmp |= marker == APP1 and data.find(b"Orientation", start, end) >= 0
        place = end
    return _by_pillow(data)


def _of_exif(tiff: bytes) -> int | None:
    """Return the orientation of a whole EXIF block that has one; None: Pillow must be asked."""
    order: Any = {b"II*\0": "little", b"MM\0*": "big"}.get(tiff[:4])
    if order is None:
        return None
    first = int.from_bytes(tiff[4:8], order)
    count = int.from_bytes(tiff[first : first + 2], order)
    entries = tiff[first + 2 : first + 2 + 12 * count]
    if first < 8 or len(entries) != 12 * count:
        return None
    for at in range(0, len(entries), 12):
        tag, kind, number, value = (
            int.from_bytes(entries[at + start : at + stop], order)
            for start, stop in ((0, 2), (2, 4), (4, 8), (8, 12))
        )
        if tag == TAG:
            value = int.from_bytes(entries[at + 8 : at + 10], order)
            return value if kind == SHORT and number == 1 and 1 <= value <= 8 else None
        size = number * SIZES.get(kind, len(tiff))
        if size > 4 and value + size > len(tiff):  # Pillow reads no further
            return None
    return None


def _by_pillow(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            return orientation_of(image)
    except Exception:  # what is wrong with it, decoding says
        return 1
