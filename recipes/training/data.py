"""The batches of a run: each is a function of the recipe and the step."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common.addresses import text_seed
from recipes.config.schema import Run
from recipes.config.settings import BLOCK, GROUPS, NO_DISK, Data, RecipeError
from shards import Augment, Batch, Cache, Manifest, ShardsError, Stream, open_corpus
from shards.run import default_workers
from shards.streaming.mixture import ORDER


@dataclass(frozen=True)
class Corpora:
    """The corpora that a run is trained on: manifest and weight by the place of each."""

    manifests: Mapping[str, Manifest]
    weights: Mapping[str, float]

    @classmethod
    def of(cls, data: Data) -> Corpora:
        """Open the corpora that a recipe names; raises `ShardsError`."""
        cache, block = cache_of(data), data.block or BLOCK
        opened = {place: open_corpus(place, data.split, cache, block) for place in data.corpora}
        return cls({place: one.manifest for place, one in opened.items()}, data.corpora)

    @property
    def samples(self) -> int:
        """Pictures in all of them."""
        return sum(one.samples for one in self.manifests.values())

    @property
    def digest(self) -> str:
        """Hex SHA-256 of their contents, wherever they lie; for a single corpus, its manifest's."""
        if len(self.manifests) == 1:
            return next(iter(self.manifests.values())).digest
        total = sum(self.weights.values())
        mixed = [[one.digest, self.weights[place] / total] for place, one in self.manifests.items()]
        return hashlib.sha256(json.dumps(mixed).encode()).hexdigest()

    def named(self, split: str) -> Iterator[tuple[str, str, Manifest]]:
        """Yield name, place and manifest of each; one alone has the name of its split."""
        for number, (place, one) in enumerate(self.manifests.items()):
            yield f"{split}-{number}" if len(self.manifests) > 1 else split, place, one


class Feed:
    """Batches of a run for one process of `world_size`, on its device, from any step on."""

    def __init__(self, run: Run, rank: int, world_size: int, device: torch.device) -> None:
        """Open the run's shards; raises `ShardsError` or `RecipeError`."""
        check_batch(run, world_size)
        self.run, self.rank, self.world_size, self.device = run, rank, world_size, device
        self.corpora = Corpora.of(run.data)
        self._streams: dict[int, Stream] = {0: self._stream(0)}

    def from_step(self, step: int, order: int = ORDER) -> Iterator[Batch]:
        """Yield the batches of steps `step`, `step` + 1, ... of a run in `order`, without end.

        Those of each of the stage's shapes are a stream of its own, in its own order.
        """
        self.close()
        begun: dict[int, Iterator[Batch]] = {}
        for at in itertools.count(step):
            kind, before = self.run.stage.place(at)
            if kind not in begun:
                self._end_all_but(self.run.stage.together(kind))
                begun[kind] = self._from(kind, before, order)
            yield next(begun[kind])

    def _from(self, kind: int, step: int, order: int) -> Iterator[Batch]:
        """Return the batches of a shape, beginning after the first `step` of them."""
        if kind not in self._streams:
            self._streams[kind] = self._stream(kind)
        stream = self._streams[kind]
        epoch, within = divmod(step, stream.batches_per_epoch)
        seen = within * stream.global_batch
        stream.load_state_dict({"epoch": epoch, "samples_seen": seen, "order": order})
        return iter(stream)

    def close(self) -> None:
        """Stop the loader's processes."""
        self._end_all_but(range(0))

    def _end_all_but(self, kinds: range) -> None:
        for kind, stream in self._streams.items():
            if kind not in kinds:
                stream.close()

    def _stream(self, kind: int) -> Stream:
        data, stage = self.run.data, self.run.stage
        shape = stage.shapes[kind]
        assert shape.batch is not None
        augment = _augment(data, shape.crop)
        address = (self.run.recipe.seed, "order", stage.draws or stage.name)
        return Stream(
            data.corpora,
            split=data.split,
            batch_size=shape.batch // self.world_size,
            crop=augment.needed() if augment else shape.crop,
            seed=text_seed(*address, "shape", kind) if kind else text_seed(*address),
            rank=self.rank,
            world_size=self.world_size,
            held_out=data.spared,
            # More would wait for each other. Batches don't depend on their number.
            workers=min(data.workers, default_workers()),
            block=data.block or BLOCK,
            groups=data.groups or GROUPS,
            flip=data.flip,
            cache=cache_of(data),
            device=self.device,
            augment=augment,
        )


def first_crops(run: Run, count: int) -> list[Tensor]:
    """Return the first `count` crops that a run trains on, float32 (1, 3, S, S) in [0, 1]."""
    feed, found = Feed(run, 0, 1, torch.device("cpu")), list[Tensor]()
    try:
        for batch in feed.from_step(0):
            if len(found) >= count:
                break
            found += [image[None].float() / 255 for image in batch.images]
    finally:
        feed.close()
    return found[:count]


def check_batch(run: Run, world_size: int) -> None:
    """Raise `RecipeError` when the processes can't share the run's batch evenly."""
    accumulate = run.speed.accumulate
    parts = world_size * accumulate
    for batch in _batches(run):
        if batch % parts:
            raise RecipeError(
                f"stage {run.stage.name}: a batch of {batch} can't be shared by {world_size}"
                f" processes in {accumulate} parts each: make batch a multiple of {parts}"
            )


def _batches(run: Run) -> list[int]:
    return [shape.batch or run.stage.batch for shape in run.stage.shapes]


def check_shards(run: Run) -> Corpora:
    """Return the run's corpora; raises `RecipeError` unless they are there and hold a batch."""
    data = run.data
    try:
        corpora = Corpora.of(data)
    except ShardsError as error:
        raise RecipeError(f"data.train: {error}") from error
    samples, most = corpora.samples - data.spared, max(_batches(run))
    if samples < most:
        beside = f" beside the {data.spared} held out" if data.spared else ""
        raise RecipeError(
            f"stage {run.stage.name}: a batch of {most} needs as many pictures, but"
            f" {', '.join(data.corpora)} has {max(0, samples)}{beside}: make batch smaller or shard"
            " more pictures"
        )
    return corpora


def cache_of(data: Data) -> Cache:
    """Return the cache that a recipe wants for shards behind a URL."""
    given = data.cache
    if given.folder == NO_DISK:
        return Cache(folder=None)
    room = round(given.gigabytes * 1e9)
    return Cache(Path(given.folder), room) if given.folder else Cache(limit=room)


def _augment(data: Data, crop: int) -> Augment | None:
    """Return the augmentation on the device; the stream does the flips, as it does without one."""
    given = data.augment
    if given is None:
        return None
    return Augment(crop, downscale=given.downscale, flip=0.0, colour=given.colour)
