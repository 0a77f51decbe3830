"""A model out of a checkpoint: of any setting, for checkpoints don't depend on it."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.codec import ModelInfo, architectures
from recipes.config.settings import RecipeError
from recipes.training import results
from recipes.training.checkpoint import ABOUT, Checkpoint, found
from recipes.training.checkpoint import best as lowest


def export_checkpoint(source: Path, out: Path, *, best: bool = False) -> tuple[Path, Checkpoint]:
    """Write the model of a checkpoint to `out`; return its file and the checkpoint.

    `source` is a checkpoint's folder, or a run's, of which the newest is taken, or, if `best`, the
    one with the lowest held-out cost. Raises `RecipeError` when there is no such checkpoint, and
    `CheckpointError` when it is damaged.
    """
    chosen = _choose(source, best)
    about = chosen.about
    if "config" not in about:
        raise RecipeError(f"{chosen.folder} doesn't say what its model is: it is of an old version")
    config, info = architectures.config_of(about["config"]), ModelInfo.of(about["run"])
    return results.export(config, chosen.tensors(), out, info), chosen


def _choose(source: Path, best: bool) -> Checkpoint:
    if (source / ABOUT).is_file():
        return Checkpoint(source, json.loads((source / ABOUT).read_text()))
    checkpoints = found(source)
    chosen = lowest(checkpoints) if best else next(reversed(checkpoints), None)
    if chosen is None:
        kind = "with a held-out cost " if best else ""
        raise RecipeError(
            f"{source} has no complete checkpoint {kind}: give a run's folder, or one of its"
            " checkpoints/step-..."
        )
    return chosen
