"""Small shards made by hand, for tests of the reading side."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shards.manifest import Manifest, ShardInfo


def photo(number: int, height: int = 40, width: int = 48) -> np.ndarray:
    """A smooth picture unlike any other number's, uint8 (height, width, 3)."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """A picture's bytes in a format of Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_tar(path: Path, samples: Sequence[tuple[str, bytes]]) -> list[tuple[int, int]]:
    """Write (key, bytes) samples as a tar of `.png` members; return offset and size of each."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, data in samples:
            info = tarfile.TarInfo(f"{key}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return [(member.offset_data, member.size) for member in tar]


def write_split(
    folder: Path,
    sizes: Sequence[int],
    samples: Sequence[tuple[str, bytes]],
    split: str = "train",
    checksums: bool = False,
) -> Manifest:
    """Write shards of `sizes` samples, the manifest, and sidecars, with `checksums` or not."""
    folder.mkdir(parents=True, exist_ok=True)
    left, shards = list(samples), []
    for number, size in enumerate(sizes):
        part, left = left[:size], left[size:]
        tar = folder / f"{split}-{number:06d}.tar"
        places = write_tar(tar, part)
        columns = {
            "key": pa.array([key for key, _ in part], pa.string()),
            "offset": pa.array([offset for offset, _ in places], pa.int64()),
            "size": pa.array([length for _, length in places], pa.int64()),
        }
        if checksums:
            digests = [hashlib.sha256(data).hexdigest() for _, data in part]
            columns["sha256"] = pa.array(digests, pa.string())
        pq.write_table(pa.table(columns), tar.with_suffix(".parquet"))
        data = tar.read_bytes()
        shards.append(ShardInfo(tar.stem, size, len(data), hashlib.sha256(data).hexdigest()))
    assert not left
    total = sum(sizes)
    manifest = Manifest(split, 0, {}, "", tuple(shards), total, total, 0)
    manifest.write(folder)
    return manifest


def numbered(count: int, height: int = 40, width: int = 48) -> list[tuple[str, bytes]]:
    """`count` PNG samples with keys in order."""
    return [(f"{i:04d}", encoded(photo(i, height, width))) for i in range(count)]
