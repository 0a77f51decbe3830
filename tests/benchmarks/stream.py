"""Measures streaming, and prints the tables of `docs/streaming.md`.

    python -m tests.benchmarks.stream [quality|seek|crops|large|wait|scale ...] [--work FOLDER]

`crops` and `large` need `../shared/data`; loaders that are not installed are named and left out.
Contenders take turns in one run, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from shards import Manifest, SampleOrder, Stream
from shards.manifest import ShardInfo
from shards.streaming.groups import GroupedOrder
from tests.benchmarks.stream_peers import prepare
from tests.shards.made import encoded, photo, write_split

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
ROUNDS = 5


def spread(values: list[float]) -> str:
    """Median, and the range of the values."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def quality(work: Path) -> None:
    """How well an order shuffles 80 shards of 2,500 samples in the worst case: sorted shards."""
    columns = "neighbours from one shard | shards in 256 samples | spread of batch means"
    print(
        f"\n| order | block | {columns} | positions between neighbours |\n|---|---|---|---|---|---|"
    )
    sizes = [2500] * 80
    for kind in (SampleOrder, GroupedOrder):
        for block in (1, 2, 4, 8, 16, 32, 80):
            order = kind(sizes, 0, block)
            shards, indices = order.at(0, np.arange(len(order)))
            same = float((shards[1:] == shards[:-1]).mean())
            batches = shards[: len(shards) // 256 * 256].reshape(-1, 256)
            distinct = np.mean([len(np.unique(one)) for one in batches])
            # Sorted shards have a label that grows with the shard; independent draws give 1.
            ideal = shards.std() / np.sqrt(256)
            ratio = float(batches.mean(axis=1).std() / ideal)
            positions = np.empty((80, 2500), dtype=np.int64)
            positions[shards, indices] = np.arange(len(order))
            apart = np.median(np.abs(np.diff(positions, axis=1)))
            row = f"{same:.4f} | {distinct:.1f} | {ratio:.2f} | {apart:,.0f}"
            print(f"| {order.number} | {block} | {row} |")


def _many(work: Path) -> Path:
    """A corpus of 200,000 samples: 80 shards that are one file under many names."""
    folder = work / "many"
    if (folder / "train.json").exists():
        return folder
    samples = [(f"{i:04d}", encoded(photo(i % 50, 64, 64), "JPEG")) for i in range(2500)]
    one = write_split(folder, [2500], samples).shards[0]
    infos = []
    for number in range(80):
        name = f"train-{number:06d}"
        if number:
            for ending in ("tar", "parquet"):
                (folder / f"{name}.{ending}").hardlink_to(folder / f"{one.name}.{ending}")
        infos.append(ShardInfo(name, one.samples, one.bytes, one.sha256))
    Manifest("train", 0, {}, "", tuple(infos), 200_000, 200_000, 0).write(folder)
    return folder


def seek(work: Path) -> None:
    """The first batch of 64 at several places of an epoch of 200,000 samples."""
    folder = _many(work)
    places = {"0 %": 0, "50 %": 100_000, "90 %": 180_000}
    times: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(3 * ROUNDS):
        for name, seen in places.items():
            begun = time.perf_counter()
            opened = Stream(folder, batch_size=64, crop=32)
            opened.load_state_dict(
                {"epoch": 0, "samples_seen": seen, "order": opened.state_dict()["order"]}
            )
            next(iter(opened))
            times[name].append(time.perf_counter() - begun)
            opened.close()
    base = statistics.median(times["0 %"])
    print("\n| place | first batch, ms | times that at 0 % |\n|---|---|---|")
    for name, values in times.items():
        shown = spread([1000 * value for value in values])
        print(f"| {name} | {shown} | {statistics.median(values) / base:.2f} |")


def scale(work: Path) -> None:
    """Opening a million shards of 10,000 samples each, and a rank's next thousand positions."""
    folder = work / "million"
    if not (folder / "train.json").exists():
        folder.mkdir(parents=True)
        infos = tuple(
            ShardInfo(f"train-{i:06d}", 10_000, 10**9, f"{i:064x}") for i in range(1_000_000)
        )
        Manifest("train", 0, {}, "", infos, 10**10, 10**10, 0).write(folder)
    print("\n| rank of 1,000 | opened, s of the processor | positions, s | memory, MB |")
    print("|---|---|---|---|", flush=True)
    for rank in (0, 500, 999):
        process = multiprocessing.get_context("spawn").Process(
            target=_one_rank, args=(folder, rank)
        )
        process.start()
        process.join()


def _one_rank(folder: Path, rank: int) -> None:
    begun = time.process_time()
    opened = Stream(folder, batch_size=8, rank=rank, world_size=1000)
    ready = time.process_time()
    order = opened._source.order
    for place in range(9 * 10**9, 9 * 10**9 + 125 * 8000, 8000):
        order.at(3, order.dealt(3, place, 8000, rank, 1000))
    done = time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"| {rank} | {ready - begun:.2f} | {done - ready:.2f} | {memory:.0f} |", flush=True)


def rate(batches: Iterable[Tensor], limit: int) -> float:
    """Images a second after the first batch, which waits for workers to start."""
    begun, count = 0.0, 0
    for number, images in enumerate(islice(batches, limit)):
        if number == 0:
            begun = time.perf_counter()
        else:
            count += len(images)
    return count / (time.perf_counter() - begun)


def compare(folder: Path, crop: int, batch: int) -> None:
    """Images a second of all contenders, with no worker and with two."""
    contenders = prepare(folder)
    count = sum(len(pq.read_table(path)) for path in folder.glob("train-*.parquet"))
    for workers in (0, 2):
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, make in contenders.items():
                rates[name].append(rate(make(folder, crop, batch, workers), count // batch))
        best = max(
            statistics.median(values) for name, values in rates.items() if name != "this project"
        )
        print(f"\n{count} pictures, crops of {crop}, batches of {batch}, {workers} workers:\n")
        print("| loader | images/s | times the best other |\n|---|---|---|")
        for name, values in rates.items():
            print(f"| {name} | {spread(values)} | {statistics.median(values) / best:.2f} |")


def crops(work: Path) -> None:
    """Crops of 256 from ImageNet pictures."""
    folder = work / "imagenet"
    if not (folder / "train.json").exists():
        _shard(DATA / "imagenet-mini" / "train", folder, "64MB")
    compare(folder, 256, 32)


def large(work: Path) -> None:
    """Crops of 256 from 12-megapixel JPEGs, Kodak's pictures scaled up."""
    source, folder = work / "12-megapixels", work / "large"
    if not (folder / "train.json").exists():
        source.mkdir(exist_ok=True)
        for path in sorted((DATA / "kodak").glob("*.png")):
            with Image.open(path) as picture:
                size = (4240, 2832) if picture.width > picture.height else (2832, 4240)
                scaled = picture.resize(size, Image.Resampling.BICUBIC)
            scaled.save(source / f"{path.stem}.jpg", quality=90)
        _shard(source, folder, "8MB")
    compare(folder, 256, 4)


def _shard(source: Path, folder: Path, size: str) -> None:
    command = [sys.executable, "-m", "pipeline.cli.main", "shard", str(source)]
    subprocess.run([*command, "--out", str(folder), "--shard-size", size], check=True, cwd=ROOT)


def wait(work: Path) -> None:
    """The share of the tiny model's training steps that waits for data."""
    from pipeline.codec import CCAConfig, CCAModel

    pictures = sorted((ROOT / "recipes" / "demo" / "pictures" / "train").glob("*.jpg"))
    folder = work / "demo"
    if not (folder / "train.json").exists():
        samples = [(path.stem, path.read_bytes()) for path in pictures]
        write_split(folder, [len(samples)], samples)
    model = CCAModel(CCAConfig.tiny()).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    print("\n| workers | steps/s | share of a step that waits for data |\n|---|---|---|")
    for workers in (0, 1):
        batches = iter(Stream(folder, batch_size=8, crop=128, workers=workers))
        waited, begun = 0.0, 0.0
        for step in range(33):
            if step == 3:
                waited, begun = 0.0, time.perf_counter()
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            x = batch.images.float() / 255
            out = model(x)
            bits = sum(-torch.log2(one).sum() for one in out.likelihoods.values())
            loss = 3000 * (out.x_hat - x).square().mean() + bits / x[:, 0].numel()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total = time.perf_counter() - begun
        print(f"| {workers} | {30 / total:.2f} | {waited / total:.1%} |")


def main() -> None:
    """Run what is asked for."""
    parts: dict[str, Callable[[Path], None]] = {
        "quality": quality,
        "seek": seek,
        "crops": crops,
        "large": large,
        "wait": wait,
        "scale": scale,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}; all when none is named")
    parser.add_argument("--work", type=Path, help="keeps prepared data between runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        print(f"{os.cpu_count()} cores, torch {torch.__version__}")
        for name in given.parts or parts:
            print(f"\n## {name}", flush=True)
            parts[name](work)


if __name__ == "__main__":
    main()
