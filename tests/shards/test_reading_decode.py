"""Crops of pictures: the pixels of decoding all, whatever part of the file was decoded."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from shards.reading import turbo
from shards.reading.decode import BrokenPictureError, CropDraw, decode, decode_crop, filled
from tests.shards.made import encoded, photo

needs_turbo = pytest.mark.skipif(
    turbo.library() is None, reason="libjpeg-turbo 3 is not on this machine"
)


def noisy(number: int, height: int, width: int) -> np.ndarray:
    """A picture with detail in every channel, so that chroma matters at each column."""
    rng = np.random.default_rng(number)
    noise = rng.integers(-60, 60, (height, width, 3))
    return np.clip(photo(number, height, width) + noise, 0, 255).astype(np.uint8)


def pillow_jpeg(pixels: np.ndarray, **options: object) -> bytes:
    return encoded(pixels, "JPEG", **options)


def whole_by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@needs_turbo
@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 70),
    st.sampled_from(["444", "422", "420", "440", "411", "Gray"]),
    st.integers(10, 100),
    st.integers(0, 10**6),
)
@example(90, 90, 33, "420", 60, 5)
@example(90, 90, 1, "411", 60, 6)
def test_a_crop_is_cut_from_the_whole(height, width, side, subsampling, quality, seed):
    pixels = noisy(seed, height, width)
    if subsampling == "Gray":
        data = simplejpeg.encode_jpeg(pixels[:, :, :1].copy(), quality, "GRAY", "Gray")
    else:
        data = simplejpeg.encode_jpeg(pixels, quality, "RGB", subsampling)
    check_crop(data, side, seed)


@needs_turbo
@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"progressive": True, "subsampling": 0},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 3, "subsampling": 1},
        {"keep_rgb": True},
        {"optimize": True, "quality": 30},
    ],
)
def test_rarer_jpegs_are_cropped_exactly_too(options):
    data = pillow_jpeg(noisy(1, 150, 170), **options)
    for seed in range(20):
        check_crop(data, 31, seed)


def check_crop(data: bytes, side: int, seed: int) -> None:
    whole = decode(data)
    assert np.array_equal(whole, whole_by_pillow(data))
    draw = CropDraw.at(seed, 0, 0)
    top, left = draw.corner(whole.shape[0], whole.shape[1], side)
    wanted = whole[top : top + side, left : left + side]
    got = filled(decode_crop(data, side, draw), side)
    assert got.shape == (side, side, 3)
    assert np.array_equal(got[: wanted.shape[0], : wanted.shape[1]], wanted)
    height, width = wanted.shape[:2]
    assert np.array_equal(turbo.crop(data, top, left, height, width), wanted)


def test_crops_of_photographs_are_exact(pictures):
    for number, path in enumerate(sorted(pictures.glob("train/*.jpg"))[:6]):
        data = path.read_bytes()
        draw = CropDraw.at(1, 0, number)
        whole = whole_by_pillow(data)
        top, left = draw.corner(whole.shape[0], whole.shape[1], 256)
        assert np.array_equal(
            decode_crop(data, 256, draw), whole[top : top + 256, left : left + 256]
        )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_other_formats_are_decoded_by_pillow(kind):
    pixels = photo(3)
    data = encoded(pixels, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(decode(data), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_any_mode_becomes_rgb(mode):
    if mode == "I;16":
        picture = Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40))
    else:
        picture = Image.fromarray(photo(4, 40, 40)).convert(mode)
    for kind in ("JPEG",) if mode == "CMYK" else ("PNG",):
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        assert decode(buffer.getvalue()).shape == (40, 40, 3)
        assert decode_crop(buffer.getvalue(), 16, CropDraw.at(0, 0, 0)).shape == (16, 16, 3)


def test_of_sixteen_bits_the_nearest_eight_are_taken():
    grey = (np.arange(1600, dtype=np.uint32) * 40).astype(np.uint16).reshape(40, 40)
    nearest = np.rint(grey / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        pixels = decode(encoded(grey, kind))
        assert np.array_equal(pixels, np.repeat(nearest[:, :, None], 3, axis=2))
    with pytest.raises(BrokenPictureError, match="floating-point"):
        decode(encoded(grey.astype(np.float32), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_crop_is_cut_from_the_upright_picture(orientation, subsampling):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = pillow_jpeg(noisy(orientation, 61, 90), exif=exif, subsampling=subsampling)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    whole = decode(data)
    assert np.array_equal(whole, np.asarray(upright))
    for seed in range(10):
        draw = CropDraw.at(seed, 0, 0)
        top, left = draw.corner(whole.shape[0], whole.shape[1], 40)
        crop = decode_crop(data, 40, draw)
        assert np.array_equal(crop, whole[top : top + 40, left : left + 40])
    assert filled(decode_crop(data, 128, CropDraw.at(0, 0, 0)), 128).shape == (128, 128, 3)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 10**6), st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_a_cut_off_picture_is_broken_wherever_the_crop_lies(kept, seed, kind):
    data = encoded(noisy(2, 60, 60), kind)
    kept = min(kept, len(data) - 2)
    for function in (decode, lambda cut: decode_crop(cut, 16, CropDraw.at(seed, 0, 0))):
        with pytest.raises(BrokenPictureError):
            function(data[:kept])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_never_does_worse_than_broken(data):
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    damaged = bytearray(encoded(photo(2, 60, 60), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BrokenPictureError):
        assert decode_crop(bytes(damaged), 16, CropDraw.at(0, 0, 0)).shape == (16, 16, 3)


def test_a_bomb_is_refused_before_memory_is_taken():
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    jpeg = bytearray(pillow_jpeg(photo(1)))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    for data in (png, bytes(jpeg)):
        for function in (decode, lambda bomb: decode_crop(bomb, 16, CropDraw.at(0, 0, 0))):
            with pytest.raises(BrokenPictureError, match="pixels"):
                function(data)


def test_crops_lie_everywhere_and_half_are_flipped():
    draws = [CropDraw.at(0, 0, position) for position in range(4000)]
    places = np.array([draw.corner(12, 14, 8) for draw in draws])
    counts = np.zeros((5, 7))
    np.add.at(counts, (places[:, 0], places[:, 1]), 1)
    expected = 4000 / 35
    assert ((counts - expected) ** 2 / expected).sum() < 70  # chi-square, 34 degrees of freedom
    assert 1850 < sum(draw.flip for draw in draws) < 2150
