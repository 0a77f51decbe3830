"""Measures how well one node uses the line to its store, and prints a table.

    python -m tests.benchmarks.network [--connection 5MB] [--total 100MB] [--rounds 3]

A bucket on this machine answers as slowly as one far away. `fill`: the share of the line that
whole shards take. `first`: the first batch of 64 with nothing in the cache, in a process that has
imported all it needs; `resume`: the same at 90 % of an epoch. `node`: bytes that 2 ranks with 2
workers each fetch together in an epoch, in corpora. Seconds of the processor stand beside those of
the clock: on a busy machine they alone count. Needs aiohttp and the extra `s3`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from pipeline.common.sizes import parse_size
from shards import Cache, Stream
from shards.reading.index import Span
from shards.reading.remote import RangedCorpus
from shards.reading.requests import requests
from tests.benchmarks.bucket import Bucket
from tests.benchmarks.throttle import Line
from tests.shards.made import encoded, write_split

URL = "s3://bucket/corpus"
SPAWN = multiprocessing.get_context("spawn")


def corpus(folder: Path, shards: int = 24, samples: int = 160) -> int:
    """Make shards of about 16 MB of noisy pictures; return the bytes of all tars."""
    dice = np.random.default_rng(0)
    pictures = []
    for _ in range(50):
        pixels = dice.normal(128, 40, (375, 500, 3)).clip(0, 255).astype(np.uint8)
        pictures.append(encoded(pixels, "JPEG", quality=60))
    named = [(f"{i:06d}", pictures[i % 50]) for i in range(shards * samples)]
    write_split(folder, [samples] * shards, named, checksums=True)
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


@contextmanager
def opened() -> Iterator[Stream]:
    """Open the corpus with a cache in which nothing is."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        found = Stream(URL, batch_size=64, cache=Cache(Path(cache)))
        yield found
        found.close()


def fill(bucket: Bucket) -> float:
    """Return the bytes a second at which whole shards arrive, from first to last."""
    with opened() as found:
        (one,) = found._source.corpora
        assert isinstance(one, RangedCorpus)
        before, begun = bucket.count()[0], time.perf_counter()
        one.expect([Span(shard, 0, size) for shard, size in enumerate(one.sizes)])
        while requests().busy:
            time.sleep(0.02)
        return (bucket.count()[0] - before) / (time.perf_counter() - begun)


def first(start: float) -> tuple[float, float]:
    """Return the seconds of the clock and of the processor until a batch is there."""
    begun, worked = time.perf_counter(), time.process_time()
    with opened() as found:
        seen = int(start * found.batches_per_epoch) * found.global_batch
        found.load_state_dict({"epoch": 0, "samples_seen": seen, "order": 2})
        next(iter(found))
        return time.perf_counter() - begun, time.process_time() - worked


def _rank(rank: int, cache: Path) -> None:
    options = {"rank": rank, "world_size": 2, "workers": 2, "epochs": 1}
    for _ in Stream(URL, batch_size=32, crop=8, cache=Cache(cache), **options):  # type: ignore[arg-type]
        pass


def node(bucket: Bucket) -> int:
    """Return the bytes that two ranks with two workers each fetch, and none of them twice."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        before = bucket.count()[0]
        ranks = [SPAWN.Process(target=_rank, args=(rank, Path(cache))) for rank in range(2)]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join()
            assert one.exitcode == 0
        return bucket.count()[0] - before


def _say(name: str, values: Sequence[float], unit: str) -> None:
    shown = f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
    print(f"| {name} | {shown} {unit} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connection", default="50MB", help="a second over one connection")
    parser.add_argument("--total", default="1GB", help="a second over all of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="first,resume,fill,node", help="these, with commas")
    given = parser.parse_args()
    torch.set_num_threads(1)
    total = parse_size(given.total)
    line = Line(connection=parse_size(given.connection), total=total)
    with tempfile.TemporaryDirectory() as work:
        size = corpus(Path(work) / "corpus")
        bucket = Bucket(Path(work), line)
        os.environ.update(
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_DEFAULT_REGION="us-east-1",
            AWS_ENDPOINT_URL=bucket.url,
        )
        first(0.0)  # imports what all need
        print(f"{os.cpu_count()} cores, {size / 1e6:.0f} MB\n\n| measured | found |\n|---|---|")
        parts = given.parts.split(",")
        for name, start in (("first", 0.0), ("resume", 0.9)):
            if name in parts:
                clock, processor = zip(*(first(start) for _ in range(given.rounds)), strict=True)
                _say(f"{name} batch of 64", clock, "s")
                _say(f"{name} batch of 64, processor", processor, "s")
        if "fill" in parts:
            shares = [fill(bucket) / total for _ in range(given.rounds)]
            _say(f"share of the line, {bucket.most()} requests at most", shares, "")
        if "node" in parts:
            _say("2 ranks with 2 workers each fetch", [node(bucket) / size], "corpora")
        bucket.stop()


if __name__ == "__main__":
    main()
