"""Measures streaming from a store that is far away, and prints the tables of `docs/streaming.md`.

    python -m tests.benchmarks.remote [--pictures FOLDER] [--copies N] [--shard-size 32MB]

A real S3 server (moto's) on this machine, behind a throttle: 30 ms a request, 50 MB/s a connection,
1 GB/s in all, one request in a thousand fails. Loaders that are not installed are named and left
out. Needs s3fs and moto[server], and curl for webdataset.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from shards import Cache, Manifest, Stream
from tests.benchmarks.stream import DATA, ROOT
from tests.benchmarks.stream_peers import crop_by_pillow
from tests.benchmarks.throttle import Line, Throttle

CROP, BATCH, NODES = 256, 64, (1, 2, 4, 8)

# Makes the batches of one of several nodes from a place of its epoch on.
Loader = Callable[[str, Path, int, int, float], Iterable[Tensor]]


def ours(url: str, work: Path, rank: int, world: int, start: float) -> Iterable[Tensor]:
    """This project."""
    cache = Cache(work / "cache")
    opened = Stream(
        url, batch_size=BATCH, crop=CROP, rank=rank, world_size=world, epochs=1, cache=cache
    )
    seen = int(start * opened.batches_per_epoch) * BATCH * world
    opened.load_state_dict({"epoch": 0, "samples_seen": seen, "order": 2})
    for batch in opened:
        yield batch.images
    opened.close()


def webdataset(url: str, work: Path, rank: int, world: int, start: float) -> Iterable[Tensor]:
    """Webdataset over curl, as it reads all that is not a file; it can only begin at the start."""
    import webdataset as wds

    if shutil.which("curl") is None:
        raise ImportError("curl is not installed")
    base = os.environ["AWS_ENDPOINT_URL"] + "/" + url.removeprefix("s3://")
    names = [f"pipe:curl -s --retry 8 --fail {base}/{name}" for name in _tars(url)]
    data = (
        wds.WebDataset(
            names[rank::world], shardshuffle=len(names), nodesplitter=None, empty_check=False
        )
        .shuffle(1000)
        .rename(image="jpg;jpeg;JPEG;png")
        .map(lambda sample: crop_by_pillow(sample["image"], CROP))
        .batched(BATCH, collation_fn=torch.stack, partial=False)
    )
    batches = iter(DataLoader(data, batch_size=None))
    return islice(batches, int(start * _samples(url) / world / BATCH), None)


def datasets(url: str, work: Path, rank: int, world: int, start: float) -> Iterable[Tensor]:
    """Hugging Face `datasets`, streaming the same tars."""
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node

    files = [f"{url}/{name}" for name in _tars(url)]
    data = load_dataset("webdataset", data_files=files, split="train", streaming=True)
    part = split_dataset_by_node(data.shuffle(buffer_size=1000, seed=0), rank, world)
    part = part.skip(int(start * _samples(url) / world))
    return _batched(
        next(value for name, value in row.items() if name in ("jpg", "jpeg", "png")) for row in part
    )


def mosaicml(url: str, work: Path, rank: int, world: int, start: float) -> Iterable[Tensor]:
    """MosaicML Streaming, from shards of its own with the same pictures."""
    import streaming

    os.environ.update(
        S3_ENDPOINT_URL=os.environ["AWS_ENDPOINT_URL"],
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="1",
    )
    streaming.base.util.clean_stale_shared_memory()
    data = streaming.StreamingDataset(
        remote=f"{url}-mosaic", local=str(work / "mosaic"), shuffle=True, batch_size=BATCH
    )
    if start:
        seen = int(start * _samples(url) / BATCH / world) * BATCH * world
        data.load_state_dict(data.state_dict(seen, from_beginning=True))
    return _batched(row["image"] for row in data)


def _batched(pictures: Iterable[object]) -> Iterable[Tensor]:
    crops = []
    for picture in pictures:
        data = picture if isinstance(picture, bytes) else _encoded(picture)
        crops.append(crop_by_pillow(data, CROP))
        if len(crops) == BATCH:
            yield torch.stack(crops)
            crops = []


def _encoded(picture: object) -> bytes:
    if isinstance(picture, dict):
        return bytes(picture["bytes"])
    import io

    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _tars(url: str) -> list[str]:
    return [info.tar for info in Manifest.read(url).shards]


def _samples(url: str) -> int:
    return Manifest.read(url).samples


def prepare(given: argparse.Namespace, work: Path) -> tuple[Throttle, str, int]:
    """Start the server, make and upload the shards; return the throttle, their URL and bytes."""
    from moto.server import ThreadedMotoServer

    shards = work / "shards"
    source = work / "pictures"
    source.mkdir()
    for copy in range(given.copies):
        for number, path in enumerate(sorted(given.pictures.rglob("*.[jJ][pP]*[gG]"))):
            (source / f"{copy}-{number:05d}{path.suffix}").symlink_to(path)
    command = [sys.executable, "-m", "pipeline.cli.main", "shard", str(source), "--workers", "2"]
    command += ["--out", str(shards), "--shard-size", given.shard_size, "--check", "header"]
    subprocess.run(command, check=True, cwd=ROOT)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
    )
    import s3fs

    direct = s3fs.S3FileSystem(skip_instance_cache=True)
    direct.mkdir("bucket")
    direct.put(f"{shards}/", "s3://bucket/corpus/", recursive=True)
    _mosaic_shards(shards, work, direct)
    throttle = Throttle(port, Line())
    os.environ["AWS_ENDPOINT_URL"] = throttle.url
    s3fs.S3FileSystem.clear_instance_cache()
    total = sum(path.stat().st_size for path in shards.glob("*.tar"))
    return throttle, "s3://bucket/corpus", total


def _mosaic_shards(shards: Path, work: Path, store: object) -> None:
    try:
        import streaming
    except ImportError:
        return
    from shards import open_corpus

    corpus, made = open_corpus(shards), work / "mosaic-made"
    with streaming.MDSWriter(out=str(made), columns={"image": "bytes"}) as out:
        for shard, size in enumerate(corpus.sizes):
            for index in range(size):
                out.write({"image": corpus.read(corpus.sample(shard, index))})
    store.put(f"{made}/", "s3://bucket/corpus-mosaic/", recursive=True)


def measure(load: Loader, url: str, total: int, throttle: Throttle) -> dict[str, str]:
    """Return a row of the table."""
    row = {}
    for name, start in (("first batch, s", 0.0), ("resume at 90 %, s", 0.9)):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
            begun = time.perf_counter()
            batches = iter(load(url, Path(work), 0, 1, start))
            next(batches)
            row[name] = f"{time.perf_counter() - begun:.2f}"
            if not start:
                begun = time.perf_counter()
                count = sum(len(images) for images in batches)
                row["images/s"] = f"{count / (time.perf_counter() - begun):.0f}"
    for nodes in NODES:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
            before, _ = throttle.count()
            for _ in load(url, Path(work), 0, nodes, 0.0):
                pass
            share = (throttle.count()[0] - before) / total
            row[f"corpora a node at {nodes}"] = f"{share:.2f}"
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=DATA / "imagenet-mini" / "train")
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--shard-size", default="32MB")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        throttle, url, total = prepare(given, Path(temporary))
        print(f"{_samples(url)} pictures, {len(_tars(url))} shards, {total / 1e6:.0f} MB")
        rows = {}
        for load in (ours, webdataset, datasets, mosaicml):
            try:
                rows[load.__name__] = measure(load, url, total, throttle)
            except ImportError as error:
                print(f"{load.__name__}: not installed ({error})")
        columns = list(next(iter(rows.values())))
        print(f"\n| loader | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for name, row in rows.items():
            print(f"| {name} | {' | '.join(row[column] for column in columns)} |")
        throttle.stop()


if __name__ == "__main__":
    main()
