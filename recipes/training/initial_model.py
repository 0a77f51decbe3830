"""The model that a run starts from: its parent stage's, or any MODEL that its stage names."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from torch import isfinite

from pipeline.codec import CodecError, ModelInfo, load_auxiliary, load_model
from pipeline.codec.stored import model_file, stored_fingerprint
from pipeline.tracking import TrackingError, resolve_model
from recipes.config.schema import Run
from recipes.config.settings import RecipeError


def starting_model(run: Run) -> Path | None:
    """Return the file or folder of the model that `run` starts from; None for random weights.

    A MODEL that lies elsewhere is fetched. Raises `RecipeError` when there is none, or one that is
    damaged.
    """
    if run.init_model is not None:
        return _resolved(run.stage.name, run.init_model)
    return None if run.parent is None else run.parent.folder


@lru_cache(maxsize=64)
def _resolved(stage: str, model: str) -> Path:
    try:
        place = resolve_model(model)
        _check_numbers(place)
    except (TrackingError, CodecError) as error:
        raise RecipeError(f"stage {stage}: init: {error}") from error
    return place


def _check_numbers(place: Path) -> None:
    """Raise `CodecError` for a model that is damaged, or from which no step can be taken."""
    for module in (load_model(place), load_auxiliary(place)):
        for name, tensor in module.state_dict().items() if module is not None else ():
            if not bool(isfinite(tensor).all()):
                raise CodecError(f"{place}: {name} has values that are not finite numbers")


def starting_fingerprint(run: Run) -> str | None:
    """Return the fingerprint of the model that a run starts from; None if it starts from none."""
    place = starting_model(run)
    if place is None:
        return None
    try:
        return stored_fingerprint(model_file(place))
    except CodecError:
        return None


@lru_cache(maxsize=64)
def model_info(place: Path) -> ModelInfo:
    """Return the facts on its origin that the model at `place` holds."""
    return load_model(place).info


def lineage(run: Run) -> dict[str, str]:
    """Return tags that name the MODEL which a run starts from; {} if its own recipe trained it."""
    if run.init_model is None:
        return {}
    place = starting_model(run)
    assert place is not None
    about = model_info(place)
    return {
        "init": run.init_model,
        "init_fingerprint": starting_fingerprint(run) or "",
        "init_run_id": str(about.run_id or ""),
        "init_recipe": str(about.recipe or ""),
    }
