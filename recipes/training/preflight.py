"""What can be found wrong before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.codec import CodecError, Config, architectures
from recipes.config.schema import Run
from recipes.config.settings import RecipeError
from recipes.launching import processes as launch
from recipes.training import checkpoint
from recipes.training.data import check_batch, check_same, check_shards, held_out
from recipes.training.module import can_start_from, frozen_names, run_config
from recipes.training.results import parent_fingerprint, read_run


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
        if run.stage.frozen:
            with torch.device("meta"):
                frozen_names(run, architectures.load(config.architecture).model(config))
        _check_parent(run)
        _check_folder(run)
        corpora = check_shards(run)
        held_out(run)
        begun = checkpoint.found(run.folder)
        if begun:
            # What is trained is skipped, whatever shards its children train on.
            check_same(run, begun[-1].about, None if run.complete else corpora)


def _check_parent(run: Run) -> None:
    """Raise `RecipeError` for a run that was begun from another model than its parent's."""
    began_from = read_run(run.folder).get("parent_fingerprint")
    if run.parent is None or began_from is None:
        return
    if not run.parent.complete or parent_fingerprint(run) != began_from:
        raise RecipeError(
            f"{run.id} was begun from another {run.parent.id} than there is, or will be, in"
            f" {run.parent.folder}: remove {run.folder} to train it anew, or give another out"
        )


def _check_folder(run: Run) -> None:
    """Raise `RecipeError` when the run's folder can't be written."""
    there = next(place for place in (run.folder, *run.folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise RecipeError(f"out: {there} is a file, so nothing can be written to {run.folder}")
    if not (run.complete or os.access(there, os.W_OK | os.X_OK)):
        raise RecipeError(f"out: {there} can't be written")


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


def _config(run: Run) -> Config:
    try:
        return run_config(run)
    except CodecError as error:
        raise RecipeError(f"stage {run.stage.name}: model: {error}") from error
