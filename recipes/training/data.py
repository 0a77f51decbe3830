"""The batches of a run: what a step sees is a function of the recipe and the step."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.common.addresses import text_seed
from pipeline.common.digests import file_sha256
from recipes.config.bundled import shipped
from recipes.config.schema import Run
from recipes.config.settings import BLOCK, GROUPS, NO_DISK, Data, RecipeError
from shards import Augment, Batch, Cache, Manifest, ShardsError, Stream, open_corpus
from shards.run import default_workers
from shards.streaming.mixture import ORDER

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpora:
    """What a run is trained on: by where each corpus lies, its manifest and its weight."""

    manifests: Mapping[str, Manifest]
    weights: Mapping[str, float]

    @classmethod
    def of(cls, data: Data) -> Corpora:
        """Open the corpora that a recipe names; raises `ShardsError`."""
        cache, block = _cache(data), data.block or BLOCK
        opened = {place: open_corpus(place, data.split, cache, block) for place in data.corpora}
        return cls({place: one.manifest for place, one in opened.items()}, data.corpora)

    @property
    def samples(self) -> int:
        """Pictures in all of them."""
        return sum(one.samples for one in self.manifests.values())

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what they hold, wherever they lie: of one corpus, its manifest's own."""
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
        data, stage = run.recipe.data, run.stage
        check_batch(run, world_size)
        self.batch = stage.batch
        self.local = stage.batch // world_size
        self.corpora = Corpora.of(data)
        augment = _augment(data, stage.crop)
        self._stream = Stream(
            data.corpora,
            split=data.split,
            batch_size=self.local,
            crop=augment.needed() if augment else stage.crop,
            seed=text_seed(run.recipe.seed, "order", stage.draws or stage.name),
            rank=rank,
            world_size=world_size,
            # More would wait for each other; what a step sees doesn't depend on their number.
            workers=min(data.workers, default_workers()),
            block=data.block or BLOCK,
            groups=data.groups or GROUPS,
            flip=data.flip,
            cache=_cache(data),
            device=device,
            augment=augment,
        )

    def from_step(self, step: int, order: int = ORDER) -> Iterator[Batch]:
        """Yield the batches of steps `step`, `step` + 1, ... of a run in `order`, without end."""
        epoch, within = divmod(step, self._stream.batches_per_epoch)
        seen = within * self.batch
        self._stream.load_state_dict({"epoch": epoch, "samples_seen": seen, "order": order})
        return iter(self._stream)

    def close(self) -> None:
        """Stop the loader's processes."""
        self._stream.close()


def check_batch(run: Run, world_size: int) -> None:
    """Raise `RecipeError` when the processes can't share the run's batch evenly."""
    parts = world_size * run.recipe.speed.accumulate
    if run.stage.batch % parts:
        raise RecipeError(
            f"stage {run.stage.name}: a batch of {run.stage.batch} can't be shared by"
            f" {world_size} processes in {run.recipe.speed.accumulate} parts each: make batch a"
            f" multiple of {parts}"
        )


def check_shards(run: Run) -> Corpora:
    """Return the run's corpora; raises `RecipeError` unless they are there and hold a batch."""
    data = run.recipe.data
    try:
        corpora = Corpora.of(data)
    except ShardsError as error:
        raise RecipeError(f"data.train: {error}") from error
    samples = corpora.samples
    if samples < run.stage.batch:
        raise RecipeError(
            f"stage {run.stage.name}: a batch of {run.stage.batch} needs as many pictures, but"
            f" {', '.join(data.corpora)} has {samples}: make batch smaller or shard more pictures"
        )
    return corpora


def held_out(run: Run) -> list[Path]:
    """Return the held-out pictures; raises `RecipeError` when their folder has none."""
    from pipeline.evaluation.errors import EvaluationError
    from pipeline.evaluation.pictures import find_pictures

    data = run.recipe.data
    if data.validation is None:
        return []
    try:
        found = find_pictures(shipped(Path(data.validation)))
        hidden = [path for path in found if path.name.startswith("._")]
        if hidden:
            # What macOS puts beside a file on other systems' disks; it is no picture.
            log.warning("data.validation: left out %s: no pictures", ", ".join(map(str, hidden)))
        return [path for path in found if path not in hidden][: data.validation_pictures]
    except EvaluationError as error:
        raise RecipeError(f"data.validation: {error}") from error


def digest(pictures: Sequence[Path]) -> str:
    """Return the hex SHA-256 of what the files `pictures` hold, in order; "" of none."""
    if not pictures:
        return ""
    return hashlib.sha256(" ".join(file_sha256(path) for path in pictures).encode()).hexdigest()


def _cache(data: Data) -> Cache:
    given = data.cache
    if given.folder == NO_DISK:
        return Cache(folder=None)
    room = round(given.gigabytes * 1e9)
    return Cache(Path(given.folder), room) if given.folder else Cache(limit=room)


def _augment(data: Data, crop: int) -> Augment | None:
    """Return what is done on the device; flips stay with the stream, as without it."""
    given = data.augment
    if given is None:
        return None
    return Augment(crop, downscale=given.downscale, flip=0.0, colour=given.colour)
