"""Finds mistakes before any work is done."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Container, Sequence
from functools import lru_cache
from typing import Any

import torch

from pipeline.codec import CodecError, Config, architectures
from pipeline.codec.stored import load_config
from pipeline.evaluation.errors import EvaluationError
from recipes.config.optimizing import OF_MATRICES
from recipes.config.schema import Run
from recipes.config.settings import RecipeError
from recipes.launching import processes as launch
from recipes.training import checkpoint
from recipes.training.data import check_batch, check_shards
from recipes.training.held_out import HeldOut, held_out
from recipes.training.initial_model import starting_fingerprint, starting_model
from recipes.training.module import can_start_from, frozen_names, run_config, shares_tensors
from recipes.training.results import read_run
from recipes.training.resume import check_same, check_steps_left

# The longest name of a socket, without its end; and what multiprocessing puts after the folder.
_SOCKET, _SOCKET_NAME = 107, len("/pymp-abcdefgh/listener-abcdefgh")


def before_work(runs: Sequence[Run], begun_elsewhere: Container[str] = ()) -> None:
    """Raise `RecipeError` for mistakes that would end a run; needs no processes.

    Runs named in `begun_elsewhere` do not go on from their own newest checkpoint.
    """
    for run in runs:
        config = _config(run)
        elsewhere = run.id in begun_elsewhere
        _check_start(run, config)
        if run.parent is not None and run.parent not in runs and not run.parent.complete:
            raise RecipeError(
                f"{run.id} starts from {run.parent.id}, which is not trained yet:"
                f" train stage {run.parent.stage.name} first"
            )
        if run.stage.frozen:
            with torch.device("meta"):
                frozen_names(run, architectures.load(config.architecture).model(config))
        if not elsewhere:
            _check_parent(run)
        _check_folder(run)
        _check_sockets(run)
        corpora = check_shards(run)
        for picture in held_out(run):
            _decodes(picture)
        if elsewhere:
            continue
        begun = checkpoint.found(run.folder)
        if begun:
            # A trained run is skipped, whatever shards its children train on.
            check_same(run, begun[-1].about, None if run.complete else corpora)
        if not run.complete:
            check_steps_left(run)


def _check_start(run: Run, config: Config) -> None:
    """Raise `RecipeError` for a run that starts from a model whose weights don't fit."""
    if run.parent is not None:
        name, given = run.parent.id, _config(run.parent)
        advice = (
            "give both stages the same `model` (and `variable_rate`, if the parent has one), or"
            " take what fits by init_partial=true"
        )
    elif run.init_model is not None and (place := starting_model(run)) is not None:
        name, given = run.init_model, load_config(place)
        advice = "give the recipe its `model`, or take what fits by init_partial=true"
    else:
        return
    if can_start_from(config, given):
        return
    if not run.stage.init_partial:
        raise RecipeError(f"{run.id} starts from {name}, which has another architecture: {advice}")
    if not shares_tensors(config, given):
        raise RecipeError(
            f"{run.id} starts from {name}, none of whose weights fits the recipe's `model`:"
            " leave init out, or give the recipe a `model` that is more like it"
        )


@lru_cache(maxsize=4096)
def _decodes(picture: HeldOut) -> None:
    """Raise `RecipeError` when a held-out picture can't be decoded to its end."""
    try:
        picture.read()
    except EvaluationError as error:
        raise RecipeError(f"data.validation: {error}") from error


def _check_sockets(run: Run) -> None:
    """Raise `RecipeError` where loader processes could not open their sockets: they would wait."""
    folder = tempfile.gettempdir()
    if run.data.workers and len(os.fsencode(folder)) + _SOCKET_NAME > _SOCKET:
        raise RecipeError(
            f"TMPDIR is {folder}, which is too long for the sockets of the processes that load"
            f" pictures ({_SOCKET - _SOCKET_NAME} bytes at most): set TMPDIR=/tmp, or"
            " data.workers=0"
        )


def _check_parent(run: Run) -> None:
    """Raise `RecipeError` for a run that was begun from another model than its parent's."""
    began_from = read_run(run.folder).get("parent_fingerprint")
    if run.stage.init is None or began_from is None:
        return
    trained = run.parent is None or run.parent.complete
    if not trained or starting_fingerprint(run) != began_from:
        name = run.init_model if run.parent is None else run.parent.id
        place = run.init_model if run.parent is None else run.parent.folder
        raise RecipeError(
            f"{run.id} began from another {name} than the one that is, or will be, in {place}:"
            f" remove {run.folder} to train it anew, or give another out"
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
        if run.averages and launch.zero_stage(accelerator) == 3:
            raise RecipeError(
                f"{'swa' if run.ema is None else 'ema'} needs whole weights on each process, and"
                " ZeRO-3 has parts: use ZeRO-2, or leave it out"
            )
        if run.speed.cuda_graphs is True and (
            launch.sharded(accelerator) or accelerator.device.type != "cuda"
        ):
            raise RecipeError(
                "speed.cuda_graphs needs a CUDA device, and weights that DeepSpeed doesn't move:"
                " leave one of them out"
            )
        _check_optimizer(run, accelerator)


def _check_optimizer(run: Run, accelerator: Any) -> None:
    """Raise `RecipeError` where an optimizer of matrices would not see any, or is not installed."""
    name = run.optimizer.name
    if name not in OF_MATRICES:
        return
    where = f"stage {run.stage.name}: the optimizer {name}"
    if launch.sharded(accelerator):
        raise RecipeError(
            f"{where} steps whole kernels, and DeepSpeed ZeRO hands optimizers flat parts of all"
            " weights in a row: train without DeepSpeed, or by adam or adamw"
        )
    if run.speed.cuda_graphs is True:
        raise RecipeError(
            f"{where} computes what a CUDA graph can't replay (a basis that changes every few"
            " steps, step counts on the host): leave speed.cuda_graphs out, or take adam or adamw"
        )
    importlib.import_module("recipes.training.matrices")


def _config(run: Run) -> Config:
    try:
        return run_config(run)
    except CodecError as error:
        raise RecipeError(f"stage {run.stage.name}: model: {error}") from error
