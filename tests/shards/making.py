"""Small corpora for the tests of shards, and the means to look at what was made of them."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shards.options import Options
from shards.run import Summary, shard

SMALL = Options(shard_size=60_000, min_side=32)


def jpeg(seed: int = 0, width: int = 64, height: int = 48, mode: str = "RGB") -> bytes:
    """Return a JPEG of smooth noise; another `seed` gives another picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return encoded(image.convert(mode), "JPEG")


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Return `image` as bytes in format `form`."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def corpus(folder: Path, count: int = 60, classes: int = 3) -> Path:
    """Write `count` JPEGs in `classes` class folders."""
    for number in range(count):
        path = folder / f"class{number % classes}" / f"picture{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number, 64 + number % 7, 48 + number % 5))
    return folder


def make(source: Path | str, dest: Path, options: Options = SMALL, **more: object) -> Summary:
    """Shard one source into one split; return its summary."""
    return shard([str(source)], dest, options, **{"workers": 1, **more})[0]  # type: ignore[arg-type]


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in `folder`, hidden ones too."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def rows(dest: Path, split: str = "train") -> list[dict[str, object]]:
    """Return the rows of all sidecars of `split`, in order."""
    paths = sorted(dest.glob(f"{split}-*.parquet"))
    return list(pa.concat_tables([pq.read_table(path) for path in paths]).to_pylist())


def rejects(dest: Path, split: str = "train") -> dict[str, str]:
    """Return the reason of every rejected picture by its source."""
    table = pq.read_table(dest / f"{split}.rejects.parquet").to_pylist()
    return {row["source"]: row["reason"] for row in table}
