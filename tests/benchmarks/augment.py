"""Measures `pipeline shard --augment` against what its decoder and its encoder take alone.

    python -m tests.benchmarks.augment PICTURES [--count 100] [--repeats 3] [--spec FILE.yaml]

Contenders take turns in one process on the same pictures, on one thread each, and the table shows
the CPU time of that thread for a picture: median, least and greatest of the repeats. Ratios are of
pairs that ran one after the other. What else the machine does changes CPU times less than rates,
but not by nothing: read the ratios. img2dataset's resizer takes part with `--img2dataset PYTHON`.

With `--device cuda` (or `cuda:0,2`) and `--workers 16` the command alone is measured, with GPUs:
pictures and crops a second, starting included, and the share of the time in which GPUs work.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.common.pictures import PictureError, read
from shards.augment.encoders import encoder_for
from shards.augment.operations import Augmenter
from shards.augment.spec import Spec, read_dict
from shards.options import Options, augment_options
from shards.run import shard
from tests.benchmarks.augment_served import measure as served

# Runs once over the pictures; one that runs in another process returns its CPU seconds.
Contender = Callable[[], float | None]
SPEC = Path("shards/augment/lic.yaml")
SIDE = 256


def ours(paths: list[Path], spec: Path, scratch: Path) -> Contender:
    """Return the whole command as it is now, in one process."""
    listed = listed_in(scratch, paths)
    options = Options(min_side=0, labels=False, augment=augment_options(str(spec), "cpu"))

    def run() -> None:
        shutil.rmtree(scratch / "dest", ignore_errors=True)
        shard([str(listed)], scratch / "dest", options, workers=1)

    return run


def listed_in(folder: Path, paths: list[Path]) -> Path:
    """Return a new file in `folder` that lists `paths`."""
    listed = folder / "list.txt"
    listed.write_text("".join(f"{path.resolve()}\n" for path in paths))
    return listed


def before(paths: list[Path], spec: Path) -> Contender:
    """Return the way of version 1: Pillow, floats, Kornia's blur, PNG at level 4."""
    old = replace(Spec.from_dict(read_dict(spec)), version=1, encode="small")
    augmenter, encode = Augmenter(old, 0), encoder_for(old)

    def run() -> None:
        for path in paths:
            pixels = _decoded(path)
            if pixels is not None:
                for one in augmenter([(path.name, pixels)])[path.name]:
                    encode(one, None)

    return run


def bare(paths: list[Path], spec: Path) -> Contender:
    """Return decoding every picture, and encoding as many crops as there will be, alone."""
    asked = Spec.from_dict(read_dict(spec))
    encode = encoder_for(asked)

    def run() -> None:
        for path in paths:
            pixels = _decoded(path)
            if pixels is not None and min(pixels.shape[:2]) >= SIDE:
                for _ in range(asked.crops):
                    encode(np.ascontiguousarray(pixels[:SIDE, :SIDE]), None)

    return run


def pillow(paths: list[Path], spec: Path) -> Contender:
    """Return what a script with Pillow does: resize the whole, cut twice, flip, PNG at level 1."""

    def run() -> None:
        random = np.random.default_rng(0)
        for path in paths:
            pixels = _decoded(path)
            if pixels is None or min(pixels.shape[:2]) < SIDE:
                continue
            height, width = pixels.shape[:2]
            scale = max(random.uniform(0.6, 0.9), SIDE / min(height, width))
            size = (round(width * scale), round(height * scale))
            small = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
            for _ in range(2):
                left, top = (int(random.integers(0, side - SIDE + 1)) for side in size)
                crop = small.crop((left, top, left + SIDE, top + SIDE))
                crop.save(io.BytesIO(), "PNG", compress_level=1)

    return run


# Run by another interpreter: img2dataset needs older packages than the project does.
RESIZER = """
import io, sys, time
from pathlib import Path
from img2dataset.resizer import Resizer
resizer = Resizer(int(sys.argv[1]), "center_crop", False, encode_format="png", encode_quality=1)
paths = sys.stdin.read().splitlines()
for turn in range(2):
    start = time.process_time()
    for path in paths:
        resizer(io.BytesIO(Path(path).read_bytes()))
print(time.process_time() - start)
"""


def img2dataset(paths: list[Path], python: str) -> Contender:
    """Return img2dataset's resizer: the shorter side to 256, cut in the middle, PNG; one crop."""
    words = [python, "-W", "ignore", "-c", RESIZER, str(SIDE)]
    names = "".join(f"{path.resolve()}\n" for path in paths)
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}

    def run() -> float:
        done = subprocess.run(
            words, input=names, env=alone, capture_output=True, text=True, check=True
        )
        return float(done.stdout.splitlines()[-1])

    return run


def _decoded(path: Path) -> Any:
    try:
        return read(path).shown()
    except PictureError:
        return None


def measure(contenders: dict[str, Contender], count: int, repeats: int) -> dict[str, list[float]]:
    """Return milliseconds of CPU for a picture, by contender, each in turn."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeats + 1):
        for name, run in contenders.items():
            start = time.process_time()
            elsewhere = run()
            taken = time.process_time() - start if elsewhere is None else elsewhere
            if number:  # the first time, libraries are imported
                found[name].append(1000 * taken / count)
    return found


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--spec", type=Path, default=SPEC)
    parser.add_argument(
        "--img2dataset", metavar="PYTHON", help="the Python of an environment that has img2dataset"
    )
    parser.add_argument("--device", help="measure with devices that augment: cuda, cuda:0,2, cpu")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args()
    paths = sorted(
        path for path in asked.pictures.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )
    paths = paths[:: max(len(paths) // asked.count, 1)][: asked.count]
    with tempfile.TemporaryDirectory() as folder:
        if asked.device:
            listed = listed_in(Path(folder), paths)
            dest = Path(folder, "dest")
            served(listed, dest, asked.spec, asked.device, asked.workers, asked.repeats)
            return
        contenders = {
            "pipeline shard --augment": ours(paths, asked.spec, Path(folder)),
            "the way of version 1": before(paths, asked.spec),
            "decoder and encoder alone": bare(paths, asked.spec),
            "a script with Pillow": pillow(paths, asked.spec),
        }
        if asked.img2dataset:
            resizer = img2dataset(paths, asked.img2dataset)
            contenders["img2dataset's resizer, one crop"] = resizer
        found = measure(contenders, len(paths), asked.repeats)
    for name, taken in found.items():
        print(f"| {name} | {shown(taken)} |")
    now = found["pipeline shard --augment"]
    for name, taken in found.items():
        ratios = [other / one for one, other in zip(now, taken, strict=True)]
        print(f"| {name} / pipeline shard --augment, CPU time | {shown(ratios)} |")


def shown(values: list[float]) -> str:
    """Return median, least and greatest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
