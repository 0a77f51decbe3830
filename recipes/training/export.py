"""Exports the model of a checkpoint, whatever settings it was trained under."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.codec import CodecError, ModelInfo, architectures
from pipeline.codec.stored import load_info, target_file
from pipeline.common.documents import parse
from pipeline.common.targets import check_target
from recipes.config.settings import RecipeError
from recipes.training import results
from recipes.training.checkpoint import ABOUT, Checkpoint, found
from recipes.training.checkpoint import best as lowest


def export_checkpoint(
    source: Path, out: Path, *, best: bool = False, force: bool = False, half: bool = False
) -> tuple[Path, Checkpoint]:
    """Write the model of a checkpoint to `out`; return its file and the checkpoint.

    An earlier export of the same run is replaced; with `force` any other file is, but the run's
    own model.

    `source` is a checkpoint's folder, or a run's, of which the newest is taken, or, if `best`, the
    one with the lowest held-out cost. `half` rounds the weights to float16.

    Raises `RecipeError` when there is no such checkpoint, `TargetError` for a file that is not
    replaced, `CheckpointError` for a damaged checkpoint, and `CodecError` for weights beyond
    float16.
    """
    chosen = _choose(source, best)
    about = chosen.about
    if "config" not in about:
        raise RecipeError(f"{chosen.folder} doesn't say what its model is: it is of an old version")
    config, info = architectures.config_of(about["config"]), ModelInfo.of(about["run"])
    target = target_file(out)
    own = chosen.folder.resolve().is_relative_to(target.resolve().parent)
    check_target(
        target, "export", lambda file: _is_earlier(file, info), sources=[target] if own else [],
        force=force, make_folder=True,
    )  # fmt: skip
    return results.export(config, chosen.tensors(), out, info, half=half), chosen


def _is_earlier(file: Path, info: ModelInfo) -> bool:
    """Whether `file` is a model of the same run, at whatever step."""
    try:
        known = load_info(file)
    except CodecError:
        return False
    return replace(known, step=None, other={}) == replace(info, step=None, other={})


def _choose(source: Path, best: bool) -> Checkpoint:
    if (source / ABOUT).is_file():
        return Checkpoint(source, parse((source / ABOUT).read_bytes()))
    checkpoints = found(source)
    chosen = lowest(checkpoints) if best else next(reversed(checkpoints), None)
    if chosen is None:
        kind = " with a held-out cost" if best else ""
        raise RecipeError(
            f"{source} has no complete checkpoint{kind}: give a run's folder, or one of its"
            " checkpoints/step-..."
        )
    return chosen
