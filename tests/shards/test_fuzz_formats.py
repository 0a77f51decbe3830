"""Mutated pictures of every format: what the check accepts verifies, streams and augments.

A few hundred of each format here; `python -m tests.shards.test_fuzz_formats --all` tries 2,000.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.common import pictures
from shards.options import Options
from shards.reading.decode import CropDraw, decode, decode_crop
from shards.samples.check import Facts, RejectedError, examine
from tests.shards.made import photo

FEW, MANY = 200, 2000
HEIGHT, WIDTH = 45, 52
OPTIONS = Options(min_side=1)
# Format, how to save it, and the modes to save.
KINDS: dict[str, tuple[str, dict[str, object], tuple[str, ...]]] = {
    "jpeg": ("JPEG", {"quality": 80}, ("RGB", "L", "CMYK")),
    "progressive": ("JPEG", {"progressive": True, "subsampling": 2}, ("RGB",)),
    "restarts": ("JPEG", {"restart_marker_rows": 1}, ("RGB",)),
    "png": ("PNG", {}, ("RGB", "P", "RGBA", "I;16", "1")),
    "webp": ("WEBP", {}, ("RGB", "RGBA")),
    "lossless webp": ("WEBP", {"lossless": True}, ("RGB", "RGBA")),
    "gif": ("GIF", {}, ("P", "L")),
    "tiff": ("TIFF", {}, ("RGB", "CMYK", "I;16", "LAB", "I")),
    "packed tiff": ("TIFF", {"compression": "tiff_lzw"}, ("RGB", "L")),
    "deflated tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}, ("RGB", "YCbCr")),
    "bmp": ("BMP", {}, ("RGB", "P", "L")),
    "jpeg 2000": ("JPEG2000", {}, ("RGB", "L")),
    "avif": ("AVIF", {"speed": 10}, ("RGB", "RGBA")),
    "ico": ("ICO", {"sizes": [(WIDTH, HEIGHT)]}, ("RGBA", "RGB")),
    "tga": ("TGA", {}, ("RGB", "L", "RGBA")),
    "packed tga": ("TGA", {"compression": "tga_rle"}, ("RGB", "P")),
    "pcx": ("PCX", {}, ("RGB", "L", "1")),
    "ppm": ("PPM", {}, ("RGB", "L", "1", "I")),
    "sgi": ("SGI", {}, ("RGB", "L")),
    "qoi": ("QOI", {}, ("RGB", "RGBA")),
}


def originals(kind: str) -> list[bytes]:
    """Whole pictures of a kind, some with EXIF and a profile."""
    form, options, modes = KINDS[kind]
    found = []
    for number, mode in enumerate(modes):
        stream = io.BytesIO()
        more: dict[str, object] = {}
        if form in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF") and number == 0:
            exif = Image.Exif()
            exif[0x010F], exif[0x0112] = "maker", 6
            more = {"exif": exif, "icc_profile": photo(1).tobytes()[:300]}
        _image(mode, number).save(stream, form, **{**options, **more})
        found.append(stream.getvalue())
    return found


def _image(mode: str, number: int) -> Image.Image:
    colour = Image.fromarray(photo(number, HEIGHT, WIDTH))
    if mode in ("I;16", "I"):
        deep = np.asarray(colour.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(deep if mode == "I;16" else deep.astype(np.int32))
    if mode == "LAB":
        return Image.frombytes("LAB", colour.size, colour.tobytes())
    return colour.convert(mode)


def mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged copies: flipped bits, lost, doubled and blank stretches, cut ends."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            # Headers are short and decide much: every second place is in the first 64 bytes.
            reach = min(len(damaged), 64) if rng.integers(2) else len(damaged)
            at, length = int(rng.integers(reach)), int(rng.integers(1, 40))
            how = rng.integers(6)
            if how == 0:
                damaged[at] ^= 1 << int(rng.integers(8))
            elif how == 1:
                damaged[at] = int(rng.integers(256))
            elif how == 2 and len(damaged) > length:
                del damaged[at : at + length]
            elif how == 3:
                damaged[at:at] = damaged[at : at + length]
            elif how == 4:
                damaged[at : at + length] = bytes(len(damaged[at : at + length]))
            elif len(damaged) > 8:
                del damaged[max(at, 4) :]
            if not damaged:
                break
        yield bytes(damaged)


def disagreement(data: bytes) -> str:
    """Return how readers disagree about a picture; "": the check rejects it, or all agree."""
    try:
        facts = examine(data, OPTIONS)
    except RejectedError:
        return ""
    try:
        return _between(data, facts)
    except Exception as error:  # a reader that refuses what the check took
        return f"{type(error).__name__}: {error}"


def _between(data: bytes, facts: Facts) -> str:
    whole = decode(data)
    size = {(facts.height, facts.width), (facts.width, facts.height)}
    if whole.shape[:2] not in size or whole.dtype != np.uint8:
        return f"{whole.shape} was checked as {facts.width} x {facts.height}"
    draw = CropDraw.at(len(data), 0, 0)
    top, left = draw.corner(whole.shape[0], whole.shape[1], 16)
    if not np.array_equal(decode_crop(data, 16, draw), whole[top : top + 16, left : left + 16]):
        return "a crop is not cut from the whole"
    coded = pictures.read(data).coded()
    if not np.array_equal(coded, whole):
        return "streamed pixels are not those that are coded"
    if facts.ending not in pictures.ENDINGS:
        return f"readers do not know the ending {facts.ending}"
    return ""


def fuzz(kind: str, count: int, seed: int = 0) -> list[tuple[bytes, str]]:
    """Return the damaged pictures of a kind about which readers disagree, and how."""
    whole = originals(kind)
    share = -(-count // len(whole))
    found = []
    for number, data in enumerate(whole):
        for damaged in mutations(data, share, seed + number):
            words = disagreement(damaged)
            if words:
                found.append((damaged, words))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_whole_pictures_are_accepted(kind: str) -> None:
    for data in originals(kind):
        assert examine(data, OPTIONS).width
        assert disagreement(data) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_check_accepts_streams(kind: str) -> None:
    assert [words for _, words in fuzz(kind, FEW)] == []


def main() -> int:
    """Try many mutations of every format; keep those that readers disagree about."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help=f"{MANY} of each format, not {FEW}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for pictures that readers differ on")
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    given = parser.parse_args()
    failed = 0
    for kind in given.kinds:
        found = fuzz(kind, MANY if given.all else FEW, given.seed)
        sys.stdout.write(f"{kind}: {len(found)} disagreements\n")
        for number, (data, words) in enumerate(found):
            sys.stdout.write(f"  {words}\n")
            if given.keep:
                given.keep.mkdir(parents=True, exist_ok=True)
                (given.keep / f"{kind}-{number}").write_bytes(data)
        failed += len(found)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
