"""Colours of pictures that carry a well-known profile of sRGB: the same as by conversion."""

from __future__ import annotations

import hashlib
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.common.pictures.colour import GREEN, RED, SRGB, same_in_srgb, to_srgb


def converted(pixels: np.ndarray, profile: bytes) -> np.ndarray:
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        "RGB",
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    return np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), transform))


def colours(red: range, green: range, blue: range) -> np.ndarray:
    """Return all colours of these levels, uint8 (H, W, 3)."""
    grid = np.stack(np.meshgrid(red, green, blue, indexing="ij"), axis=-1)
    return grid.astype(np.uint8).reshape(-1, len(green), 3)


def profiles_in(paths: list[Path]) -> dict[str, bytes]:
    found = {}
    for path in paths:
        with Image.open(path) as image:
            profile = image.info.get("icc_profile", b"")
        found[hashlib.sha256(profile).hexdigest()] = profile
    return {digest: profile for digest, profile in found.items() if digest in SRGB}


@pytest.fixture(scope="module")
def known() -> dict[str, bytes]:
    """Return profiles of photographs that a library brings, by their digests."""
    library = find_spec("sklearn")  # importing it takes seconds
    if library is None or library.origin is None:
        pytest.skip("needs scikit-learn")
    return profiles_in(sorted(Path(library.origin).parent.glob("datasets/images/*.jpg")))


LEVELS = range(0, 256, 5)
EVERY = range(256)


def test_conversion_leaves_the_colours_of_known_profiles_alone(known: dict[str, bytes]) -> None:
    assert known
    pixels = np.concatenate(
        [
            colours(LEVELS, LEVELS, LEVELS).reshape(1, -1, 3),
            colours(range(RED, RED + 9), EVERY, LEVELS).reshape(1, -1, 3),
            colours(range(RED), range(GREEN - 9, GREEN), LEVELS).reshape(1, -1, 3),
        ],
        axis=1,
    )
    cyan = (pixels[..., 0] < RED) & (pixels[..., 1] >= GREEN)
    pixels = pixels[~cyan][None]
    for profile in known.values():
        assert same_in_srgb(pixels, profile)
        assert np.array_equal(converted(pixels, profile), pixels)


def test_cyans_beyond_a_monitor_are_converted(known: dict[str, bytes]) -> None:
    pixels = colours(range(RED), range(GREEN, 256), EVERY)
    for profile in known.values():
        assert not same_in_srgb(pixels, profile)
        shown = np.asarray(to_srgb(Image.fromarray(pixels), profile))
        assert np.array_equal(shown, converted(pixels, profile))


def test_a_profile_that_is_not_known_is_converted_from() -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert not same_in_srgb(np.zeros((2, 2, 3), np.uint8), own)


@pytest.mark.nightly
def test_every_colour_of_every_known_profile(shared_data: Path) -> None:
    known = profiles_in(sorted(shared_data.rglob("*.JPEG")))
    assert len(known) >= 4
    for red in range(0, 256, 32):
        pixels = colours(range(red, red + 32), EVERY, EVERY)
        cyan = (pixels[..., 0] < RED) & (pixels[..., 1] >= GREEN)
        for profile in known.values():
            assert np.array_equal(converted(pixels, profile)[~cyan], pixels[~cyan])
