"""What can be found wrong before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.codec import CCAConfig, CodecError
from recipes import checkpoint, launch
from recipes.data import check_batch, check_same, check_shards, held_out
from recipes.module import can_start_from, model_config
from recipes.schema import Run
from recipes.settings import RecipeError


def before_work(runs: Sequence[Run]) -> None:
    """Raise `RecipeError` for what no run could get past; needs no processes."""
    for run in runs:
        config = _config(run)
        if run.parent is not None and not can_start_from(config, _config(run.parent)):
            raise RecipeError(
                f"{run.id} starts from {run.parent.id}, which has another architecture: give both"
                " stages the same `model` (and `variable_rate`, if the parent has one)"
            )
        if run.parent is not None and run.parent not in runs and not run.parent.complete:
            raise RecipeError(
                f"{run.id} starts from {run.parent.id}, which is not trained yet:"
                f" train stage {run.parent.stage.name} first"
            )
        corpora = check_shards(run)
        held_out(run)
        begun = checkpoint.found(run.folder)
        if begun:
            # What is trained is skipped, whatever shards its children train on.
            check_same(run, begun[-1].about, None if run.complete else corpora)


def for_processes(runs: Sequence[Run], accelerator: Any) -> None:
    """Raise `RecipeError` when the processes can't share a batch, or hold what the recipe asks."""
    for run in runs:
        check_batch(run, accelerator.num_processes)
        if run.recipe.ema and launch.zero_stage(accelerator) == 3:
            raise RecipeError(
                "ema needs whole weights on each process, and ZeRO-3 has parts: use ZeRO-2, or"
                " leave ema out"
            )
        if run.recipe.speed.cuda_graphs and (
            launch.sharded(accelerator) or accelerator.device.type != "cuda"
        ):
            raise RecipeError(
                "speed.cuda_graphs needs a CUDA device, and weights that DeepSpeed doesn't move:"
                " leave one of them out"
            )


def _config(run: Run) -> CCAConfig:
    try:
        return model_config(run.model, run.variable_rate)
    except CodecError as error:
        raise RecipeError(f"stage {run.stage.name}: model: {error}") from error
