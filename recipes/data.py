"""The batches of a run: what a step sees is a function of the recipe and the step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from recipes.noise import address
from recipes.schema import RecipeError, Run
from shards import Batch, Manifest, ShardsError, Stream
from shards.run import default_workers


class Feed:
    """Batches of a run for one process of `world_size`, from any step on."""

    def __init__(self, run: Run, rank: int, world_size: int) -> None:
        """Open the run's shards; raises `ShardsError` or `RecipeError`."""
        data, stage = run.recipe.data, run.stage
        check_batch(run, world_size)
        self.batch = stage.batch
        self.local = stage.batch // world_size
        self.first = rank * self.local
        self.manifest = Manifest.read(data.train, data.split)
        self._stream = Stream(
            data.train,
            split=data.split,
            batch_size=self.local,
            crop=stage.crop,
            seed=address(run.recipe.seed, "order", stage.name),
            rank=rank,
            world_size=world_size,
            # More would wait for each other; what a step sees doesn't depend on their number.
            workers=min(data.workers, default_workers()),
            flip=data.flip,
        )

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batches of steps `step`, `step` + 1, ... without end."""
        epoch, within = divmod(step, self._stream.batches_per_epoch)
        self._stream.load_state_dict({"epoch": epoch, "samples_seen": within * self.batch})
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


def check_shards(run: Run) -> None:
    """Raise `RecipeError` unless the run's shards are there and hold a batch."""
    data = run.recipe.data
    try:
        manifest = Manifest.read(data.train, data.split)
    except ShardsError as error:
        raise RecipeError(f"data.train: {error}") from error
    if manifest.samples < run.stage.batch:
        raise RecipeError(
            f"stage {run.stage.name}: a batch of {run.stage.batch} needs as many pictures, but"
            f" {data.train} has {manifest.samples}: make batch smaller or shard more pictures"
        )


def held_out(run: Run) -> list[Path]:
    """Return the held-out pictures; raises `RecipeError` when their folder has none."""
    from pipeline.evaluation.errors import EvaluationError
    from pipeline.evaluation.pictures import find_pictures

    data = run.recipe.data
    if data.validation is None:
        return []
    try:
        return find_pictures(Path(data.validation))[: data.validation_pictures]
    except EvaluationError as error:
        raise RecipeError(f"data.validation: {error}") from error
