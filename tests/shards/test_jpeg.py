"""A JPEG's header read in haste says what Pillow says, or leaves it to Pillow."""

from __future__ import annotations

import io
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from shards.samples.jpeg import jpeg_header

SAVED: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "comment": {"comment": b"by hand"},
    "optimized": {"optimize": True, "restart_marker_rows": 1},
    "icc": {"icc_profile": bytes(200_000)},
    "exif": {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
    "xmp": {"xmp": b'<x tiff:Orientation="6"/>'},
}


def saved(mode: str = "RGB", **how: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (48, 33), 90).save(file, "JPEG", **how)
    return file.getvalue()


def by_pillow(data: bytes) -> tuple[int, int, str] | None:
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            assert image.getexif().get(0x0112, 1) == 1
            return image.width, image.height, image.mode
    except Exception:
        return None


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("kind", sorted(SAVED))
def test_a_header_is_read_or_left_to_pillow(kind: str, mode: str) -> None:
    expected = None if kind in ("exif", "xmp") else (48, 33, mode)
    assert jpeg_header(saved(mode, **SAVED[kind])) == expected


def test_what_is_no_jpeg_is_left_to_pillow() -> None:
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"GIF89a" + bytes(50), saved()[:100]):
        assert jpeg_header(data) is None


def test_of_damaged_headers_nothing_is_said_that_pillow_does_not_say() -> None:
    said = 0
    for data in damaged(2000):
        found = jpeg_header(data)
        if found is not None:
            said += 1
            assert found == by_pillow(data)
    assert said > 200


def damaged(count: int) -> Iterator[bytes]:
    """Yield JPEGs with a few bytes of their headers changed, some of them cut off."""
    chance = random.Random(0)
    whole = [saved(mode, **how) for mode in ("L", "RGB", "CMYK") for how in SAVED.values()]
    for _ in range(count):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.choice((1, 1, 2, 4))):
            place = chance.randrange(min(len(data), 640))
            data[place] = chance.choice((0, 1, 254, 255, chance.randrange(256)))
        yield bytes(data[: chance.randrange(len(data))] if chance.random() < 0.2 else data)
