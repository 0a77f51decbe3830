"""Measures the encoders of augmented shards, and what training takes to read their files back.

    python -m tests.benchmarks.encoders PICTURES [--count 12] [--repeats 5] [--sides 256,1024,...]

Squares of each side are cut from the largest pictures (mirrored where one is too small). Every
encoder takes its turn on each square; the table shows milliseconds of CPU of all threads, median of
squares and repeats, and the bytes of all squares together beside those of the first row. `zstd` is
an array that went through PNG's filter, then zstd at level 1, where `zstandard` is installed. A
JPEG of the same square, quality 90, is what a training that does not augment beforehand reads.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.common.pictures import PictureError, read
from shards.augment.encoders import Encoder, encoder_for, filter_rows
from shards.augment.resampling import Pixels
from shards.augment.spec import Spec
from shards.errors import ShardsError
from shards.reading.decode import decode

ENCODERS = (
    *(("png", "libdeflate"), ("png", "zlib"), ("png", "small")),
    *(("webp", "fast"), ("webp", "small"), ("jxl", "fast")),
)
QUALITY = 90
OPERATIONS = [{"RandomCrop": {"size": 256}}]

Encode = Callable[[Pixels], bytes]
Decode = Callable[[bytes], object]


def contenders() -> dict[str, tuple[Encode, Decode]]:
    """Return what writes and what reads, by name; those that are not installed are named."""
    found: dict[str, tuple[Encode, Decode]] = {}
    for form, encoder in ENCODERS:
        try:
            spec = {"operations": OPERATIONS, "format": form, "encode": encoder}
            encode = partial(_without_profile, encoder_for(Spec.from_dict(spec)))
        except ShardsError as error:
            print(f"{form} {encoder}: {error}", flush=True)
            continue
        found[f"{form}, {encoder}"] = (encode, decode)
    try:
        import zstandard
    except ImportError:
        print("zstd: zstandard is not installed", flush=True)
    else:
        to, back = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
        found["zstd 1, filtered"] = (
            lambda pixels: to.compress(filter_rows(pixels).tobytes()),
            lambda data: np.frombuffer(back.decompress(data), np.uint8),  # not yet unfiltered
        )
    found[f"JPEG {QUALITY}, with loss"] = (_jpeg, decode)
    return found


def _without_profile(encode: Encoder, pixels: Pixels) -> bytes:
    return encode(pixels, None)


def _jpeg(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def squares(folder: Path, count: int, side: int) -> list[Pixels]:
    """Return squares from the middle of the pictures with the largest files."""
    found: list[Pixels] = []
    paths = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (-path.stat().st_size, path)):
        if len(found) == count:
            break
        try:
            pixels = np.asarray(read(path).shown())
        except PictureError:
            continue
        height, width = pixels.shape[:2]
        top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
        cut = pixels[top : top + side, left : left + side]
        missing = [(0, side - cut.shape[0]), (0, side - cut.shape[1]), (0, 0)]
        found.append(np.ascontiguousarray(np.pad(cut, missing, mode="symmetric")))
    return found


def measure(side: int, pictures: list[Pixels], repeats: int) -> None:
    """Print the table of one side."""
    print(f"\n{side} x {side}, {len(pictures)} pictures\n")
    print("| encoder | write, ms | bytes | read, ms |\n|---|---|---|---|")
    rows = {name: _row(*both, pictures, repeats) for name, both in contenders().items()}
    first = next(iter(rows.values()))[1]
    for name, (write, size, took) in rows.items():
        print(f"| {name} | {write:.1f} | {size / first:.2f} | {took:.1f} |", flush=True)


def _row(
    encode: Encode, read_back: Decode, pictures: list[Pixels], repeats: int
) -> tuple[float, int, float]:
    """Return milliseconds to write, bytes of all, milliseconds to read."""
    written = [encode(pixels) for pixels in pictures]
    write = [_timed(partial(encode, pixels)) for _ in range(repeats) for pixels in pictures]
    took = [_timed(partial(read_back, data)) for _ in range(repeats) for data in written]
    return statistics.median(write), sum(map(len, written)), statistics.median(took)


def _timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def main() -> None:
    """Measure and print a table for each side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sides", default="256,1024,2048,3464", help="pixels, by commas")
    asked = parser.parse_args()
    for side in map(int, asked.sides.split(",")):
        measure(side, squares(asked.pictures, asked.count, side), asked.repeats)


if __name__ == "__main__":
    main()
