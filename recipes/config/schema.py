"""The settings of recipes and runs: every field with its meaning, range and default.

No torch here: a scheduler plans from a recipe alone. Paths are relative to the working folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipeline.common.digests import json_sha256
from recipes.config.optimizing import Optimizer, named
from recipes.config.run_file import MODEL_FILE, read_run_file
from recipes.config.settings import (
    BLOCK,
    GROUPS,
    Cca,
    Checkpoint,
    Data,
    Folder,
    Launch,
    Loss,
    Name,
    Positive,
    RecipeError,
    Section,
    Speed,
    Tracking,
    Word,
    fastest,
)
from recipes.config.stage import Stage

# Stands for any MODEL that a stage starts from.
MODEL = "a model"
# The model that comes with the package, as the codec calls it.
SHIPPED = "box"
# Fields of a stage that stand elsewhere in another form, or cure a run midway (`skip`).
_NOT_DECISIVE = {
    *("cca", "data", "ema", "loss", "model", "optimizer"),
    *("calibrate", "rate_weight", "skip", "steps"),
}
_THRESHOLDS = {"clamp_warning", "clamp_error"}


class Recipe(Section):
    """An experiment: what `accelerate launch recipes/train.py RECIPE.yaml` runs."""

    name: Name
    """Name of the experiment, which is part of the names of its runs and models."""
    out: Folder
    """Folder for the runs."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, the order and crops of pictures, and the training noise."""
    model: Word | dict[str, Any] = "paper"
    """A preset of CCA (`paper`, `tiny`), an architecture, ARCHITECTURE/PRESET, or a mapping of
    `architecture` (default: cca), `preset` and the fields of its config that differ."""
    start: Name = "random"
    """How untrained weights start: `random`, as in torch, or another start of the architecture. CCA
    has `pyramid`, which sets the transforms to wavelets and shortens a short training; small has
    `transform`, a transform codec (docs/training.md has measurements)."""
    processes: Positive | None = None
    """Processes that train; default: one for each GPU, one on a CPU. A launch with another number
    is refused."""
    data: Data
    cca: Cca = Cca()
    loss: Loss = Loss()
    optimizer: Annotated[Optimizer, BeforeValidator(named)] = Optimizer()
    """The optimizer of the weights: a name alone, or a mapping."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, such as 0.999. Evaluations measure the average, and
    it becomes the final model, from which later stages start. Default: no average."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    evaluate_every: Positive = 5000
    """Steps between evaluations on the held-out pictures; there is always one at the end."""
    checkpoint: Checkpoint = Checkpoint()
    launch: Launch = Launch()
    tracking: Tracking = Tracking()
    speed: Annotated[Speed, BeforeValidator(fastest)] = Speed()
    """`auto` chooses the fastest settings that this machine supports, and says why it leaves others
    out."""

    @field_validator("stages")
    @classmethod
    def _names(cls, stages: list[Stage]) -> list[Stage]:
        known: list[str] = []
        for stage in stages:
            if stage.name in known:
                raise ValueError(f"two stages are called {stage.name}")
            if stage.init is not None and stage.init not in known and not _is_model(stage.init):
                raise ValueError(
                    f"stage {stage.name} starts from {stage.init}, which is no stage before it"
                    f" (those are: {', '.join(known) or 'none'}) and no model: a file, a folder,"
                    " runs:/ID or models:/NAME@ALIAS"
                )
            known.append(stage.name)
        return stages

    @model_validator(mode="after")
    def _judged(self) -> Self:
        for stage in self.stages:
            if stage.plateau is not None and not (stage.data or self.data).judges:
                raise ValueError(
                    f"stage {stage.name}: plateau needs data.validation or data.held_out to judge"
                    " by"
                )
        return self

    @property
    def threads(self) -> int | None:
        """Threads that a process computes with on a CPU; None: by the machine's cores."""
        return self.speed.threads

    @property
    def digest(self) -> str:
        """Hex SHA-256 of everything the recipe says."""
        return json_sha256(self.model_dump(mode="json"))

    def runs(self) -> list[Run]:
        """Return one run for each stage and rate weight, in an order in which parents come first.

        Raises `RecipeError` when a stage starts from one of several runs and doesn't say which.
        """
        made: dict[str, list[Run]] = {}
        for stage in self.stages:
            made[stage.name] = [
                self._run(stage, weight, made.get(stage.init or "")) for weight in stage.weights
            ]
        return [run for runs in made.values() for run in runs]

    def _run(self, stage: Stage, weight: float | None, parents: list[Run] | None) -> Run:
        fans_out = isinstance(stage.rate_weight, list)
        identity = f"{stage.name}/w{weight:g}" if fans_out else stage.name
        folder = Path(self.out) / identity
        return Run(self, stage, weight, identity, folder, _parent(stage, weight, parents))


@dataclass(frozen=True)
class Run:
    """One training run: a stage at one rate weight, or (None) at all of its `variable_rate`."""

    recipe: Recipe
    stage: Stage
    rate_weight: float | None
    id: str
    folder: Path
    parent: Run | None
    # The decisions of a machine on the recipe's `speed`.
    chosen: Speed | None = None

    @property
    def variable_rate(self) -> tuple[float, ...]:
        """The rate weights of a model for several rates, falling; () for a single rate."""
        return tuple(self.stage.variable_rate or ())

    @property
    def cca(self) -> Cca:
        """The CCA term that holds for this run."""
        return self.stage.cca or self.recipe.cca

    @property
    def speed(self) -> Speed:
        """How its steps are computed, as far as decided."""
        return self.chosen or self.recipe.speed

    @property
    def data(self) -> Data:
        """Where its pictures come from."""
        return self.stage.data or self.recipe.data

    @property
    def loss(self) -> Loss:
        """The weights of its loss."""
        return self.stage.loss or self.recipe.loss

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of its weights."""
        return self.stage.optimizer or self.recipe.optimizer

    @property
    def ema(self) -> float | None:
        """The decay of its average of the weights; None: it has none."""
        if self.stage.swa is not None:
            return None
        return (self.recipe.ema if self.stage.ema is None else self.stage.ema) or None

    @property
    def averages(self) -> bool:
        """Whether it averages its weights, in either way."""
        return self.ema is not None or self.stage.swa is not None

    @property
    def model(self) -> str | dict[str, Any]:
        """The architecture that holds for this run."""
        return self.stage.model or self.recipe.model

    @property
    def init_model(self) -> str | None:
        """The MODEL that this run starts from, if that is no stage of the recipe."""
        return None if self.parent is not None else self.stage.init

    @property
    def complete(self) -> bool:
        """Whether the run has been trained to its end, in its folder: to as many steps as now.

        A run whose model was removed goes on, to write it again. Raises `RecipeError` when its
        folder can't be read: an unreadable run does not count as unfinished.
        """
        state = read_run_file(self.folder)
        if not state.get("done") or not os.path.lexists(self.folder / MODEL_FILE):
            return False
        return bool(state.get("steps", self.stage.steps) >= self.stage.steps)

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide the numbers of the run: no places, speed or logging.

        A setting that is left out is the same as its default.
        """
        stage = self.stage.model_dump(mode="json", exclude=_NOT_DECISIVE)
        # What happens depends on how many steps are still to come.
        constant = self.stage.schedule == "constant" and self.stage.swa is None
        data, cca = self.data, self.cca
        return {
            **stage,
            # A MODEL counts by its fingerprint, wherever it lies.
            "init": self.stage.init if self.init_model is None else MODEL,
            "final_lr": None if self.stage.schedule == "constant" else self.stage.final_lr,
            "rate_weight": self.rate_weight,
            "seed": self.recipe.seed,
            "model": self.model,
            "start": self.recipe.start,
            **{f"cca.{key}": value for key, value in cca.model_dump(exclude=_THRESHOLDS).items()},
            "cca.auxiliary_weight": cca.half,
            "loss": self.loss.model_dump(mode="json"),
            "optimizer": self.optimizer.model_dump(mode="json"),
            "ema": self.ema,
            "held_out": data.spared,
            "flip": data.flip,
            "block": data.block or BLOCK,
            "groups": None if data.groups == GROUPS else data.groups,
            "augment": data.augment.model_dump(mode="json") if data.augment else None,
            "steps": None if constant else self.stage.steps,
            "precision": self.speed.precision,
        }


def _is_model(init: str) -> bool:
    """Tell whether `init` can only mean a model: by its form, or because it is there."""
    return init == SHIPPED or "/" in init or ":" in init or Path(init).exists()


def _parent(stage: Stage, weight: float | None, parents: list[Run] | None) -> Run | None:
    if parents is None:
        return None
    if len(parents) == 1:
        return parents[0]
    for parent in parents:
        if parent.rate_weight == weight:
            return parent
    known = ", ".join(f"{parent.rate_weight:g}" for parent in parents)
    if weight is None:
        raise RecipeError(
            f"stage {stage.name} trains one model and starts from stage {stage.init}, which has"
            f" one at each of {known}: start from a stage with one run"
        )
    raise RecipeError(
        f"stage {stage.name} at rate_weight {weight:g} starts from stage {stage.init}, which has"
        f" runs at {known}: give {stage.init} the weight {weight:g}, or {stage.name} one of those"
    )
