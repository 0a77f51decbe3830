"""Loaders that read one node's part of corpora in a store, for `remote`.

Each is `loader(urls, work, rank, world, start, crop) -> iterable of batches`: of the node `rank` of
`world`, from the share `start` of its epoch on, with a cache in the folder `work`. Two URLs are
mixed by WEIGHTS. A `crop` of 0 decodes nothing: only bytes are counted.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from shards import Cache, Manifest, Stream
from tests.benchmarks.stream_peers import crop_by_pillow

BATCH = 64
# The least that this project decodes of a picture.
LEAST = 8

WEIGHTS = (0.75, 0.25)
Loader = Callable[[Sequence[str], Path, int, int, float, int], Iterable[Tensor]]


def ours(
    urls: Sequence[str], work: Path, rank: int, world: int, start: float, crop: int
) -> Iterable[Tensor]:
    """This project."""
    cache = Cache(work / "cache")
    opened = Stream(
        urls[0] if len(urls) == 1 else dict(zip(urls, WEIGHTS, strict=True)),
        batch_size=BATCH,
        crop=crop or LEAST,
        rank=rank,
        world_size=world,
        epochs=1,
        cache=cache,
    )
    seen = int(start * opened.batches_per_epoch) * BATCH * world
    opened.load_state_dict({"epoch": 0, "samples_seen": seen, "order": 2})
    for batch in opened:
        yield batch.images
    opened.close()


def webdataset(
    urls: Sequence[str], work: Path, rank: int, world: int, start: float, crop: int
) -> Iterable[Tensor]:
    """Webdataset over curl, as it reads all that is not a file; it can only begin at the start."""
    import webdataset as wds

    if shutil.which("curl") is None:
        raise ImportError("curl is not installed")

    def corpus(url: str) -> wds.WebDataset:
        base = os.environ["AWS_ENDPOINT_URL"] + "/" + url.removeprefix("s3://")
        names = [f"pipe:curl -s --retry 8 --fail {base}/{name}" for name in _tars(url)]
        return (
            wds.WebDataset(
                names[rank::world], shardshuffle=len(names), nodesplitter=None, empty_check=False
            )
            .shuffle(1000)
            .rename(image="jpg;jpeg;JPEG;png")
            .map(lambda sample: _cut(sample["image"], crop))
        )

    corpora = [corpus(url) for url in urls]
    mixed = corpora[0] if len(urls) == 1 else wds.RandomMix(corpora, WEIGHTS)
    batch = wds.batched(BATCH, collation_fn=torch.stack, partial=False)
    batches = iter(DataLoader(wds.DataPipeline(mixed, batch), batch_size=None))
    return islice(batches, int(start * _samples(urls) / world / BATCH), None)


def datasets(
    urls: Sequence[str], work: Path, rank: int, world: int, start: float, crop: int
) -> Iterable[Tensor]:
    """Hugging Face `datasets`, streaming the same tars."""
    from datasets import IterableDataset, interleave_datasets, load_dataset
    from datasets.distributed import split_dataset_by_node

    # By HTTP: its own way of opening S3's files fails with this s3fs.
    def corpus(url: str) -> IterableDataset:
        base = os.environ["AWS_ENDPOINT_URL"] + "/" + url.removeprefix("s3://")
        files = [f"{base}/{name}" for name in _tars(url)]
        data = load_dataset("webdataset", data_files=files, split="train", streaming=True)
        return split_dataset_by_node(data.shuffle(buffer_size=1000, seed=0), rank, world)

    part = corpus(urls[0])
    if len(urls) > 1:
        part = interleave_datasets([corpus(url) for url in urls], list(WEIGHTS), seed=0)
    part = part.skip(int(start * _samples(urls) / world))
    named = ("jpg", "jpeg", "png")
    pictures = (next(row[name] for name in named if row.get(name) is not None) for row in part)
    return _batched(pictures, crop)


def mosaicml(
    urls: Sequence[str], work: Path, rank: int, world: int, start: float, crop: int
) -> Iterable[Tensor]:
    """MosaicML Streaming, from shards of its own with the same pictures."""
    import streaming

    os.environ.update(
        S3_ENDPOINT_URL=os.environ["AWS_ENDPOINT_URL"],
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK="0",
        LOCAL_WORLD_SIZE="1",
    )
    # One node of several stands here alone: it may not wait for the others.
    for module in ("streaming.base.dataset", "streaming.base.util"):
        importlib.import_module(module).maybe_init_dist = lambda: False
    streaming.base.util.clean_stale_shared_memory()
    where = [(f"{url}-mosaicml", str(work / f"mosaic-{i}")) for i, url in enumerate(urls)]
    shares = (None,) if len(urls) == 1 else WEIGHTS
    parts = [
        streaming.Stream(remote=remote, local=local, proportion=share)
        for (remote, local), share in zip(where, shares, strict=True)
    ]
    data = streaming.StreamingDataset(streams=parts, shuffle=True, batch_size=BATCH)
    if start:
        seen = int(start * _samples(urls) / BATCH / world) * BATCH * world
        data.load_state_dict(data.state_dict(seen, from_beginning=True))
    return _batched((row["image"] for row in data), crop)


def litdata(
    urls: Sequence[str], work: Path, rank: int, world: int, start: float, crop: int
) -> Iterable[Tensor]:
    """LitData, from chunks of its own with the same pictures."""
    import litdata as ld

    os.environ.update(GLOBAL_RANK=str(rank), WORLD_SIZE=str(world), NNODES=str(world))
    endpoint = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
    parts = [
        ld.StreamingDataset(
            f"{url}-litdata",
            cache_dir=str(work / f"litdata-{i}"),
            shuffle=True,
            storage_options=endpoint,
        )
        for i, url in enumerate(urls)
    ]
    data = (
        parts[0]
        if len(urls) == 1
        else ld.CombinedStreamingDataset(parts, weights=list(WEIGHTS), iterate_over_all=False)
    )
    if start:
        data.load_state_dict(data.state_dict(int(start * _samples(urls) / world), 1, 1))
    return _batched((row["image"] for row in data), crop)


def _cut(data: bytes, crop: int) -> Tensor:
    return crop_by_pillow(data, crop) if crop else torch.zeros(1)


def _batched(pictures: Iterable[object], crop: int) -> Iterable[Tensor]:
    crops = []
    for picture in pictures:
        data = picture if isinstance(picture, bytes) else _encoded(picture)
        crops.append(_cut(data, crop))
        if len(crops) == BATCH:
            yield torch.stack(crops)
            crops = []


def _encoded(picture: object) -> bytes:
    if isinstance(picture, dict):
        return bytes(picture["bytes"])
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _tars(url: str) -> list[str]:
    return [info.tar for info in Manifest.read(url).shards]


def _samples(urls: Sequence[str]) -> int:
    return sum(Manifest.read(url).samples for url in urls)


LOADERS: dict[str, Loader] = {
    "ours": ours,
    "webdataset": webdataset,
    "datasets": datasets,
    "mosaicml": mosaicml,
    "litdata": litdata,
}
