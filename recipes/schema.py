"""What a recipe may say: every field with its meaning, its range and its default.

No torch here: a scheduler plans from a recipe alone. Paths are relative to the working folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


class RecipeError(ValueError):
    """A recipe that can't be run as it stands; the message says where and what to do."""


Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
RateWeight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
CorpusWeight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
# MS-SSIM halves a picture four times and then lays an 11-pixel window on it.
MS_SSIM_CROP = 192


class Part(BaseModel):
    """A part of a recipe: unknown keys are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ShardCache(Part):
    """Where each machine keeps shards that lie behind a URL."""

    folder: str | None = None
    """On a local disk, shared by the machine's processes; default: ~/.cache/cca-pipeline/shards."""
    gigabytes: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 64.0
    """Room for shards, in 10^9 bytes; what was unused longest goes first."""


class Augmentation(Part):
    """What is done to crops on the device; every draw is a function of seed and position."""

    downscale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest scale: one is drawn from [downscale, 1], which takes away the artefacts of pictures
    that were compressed before. `crop` / `downscale` pixels a side are decoded for it."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of brightness, contrast and saturation; of hue, a tenth of it."""


class Data(Part):
    """Where pictures come from."""

    train: str | Annotated[dict[str, CorpusWeight], Field(min_length=1)]
    """Folder or URL of shards, as `pipeline shard` wrote them, or a pattern of other tars that ends
    in .tar; several with their weights: {shards/imagenet: 3, shards/flickr: 1}."""
    split: Name = "train"
    """The split of those shards to train on."""
    block: Positive | None = None
    """Shards that are shuffled together (docs/streaming.md has measurements); default: 8."""
    cache: ShardCache = ShardCache()
    augment: Augmentation | None = None
    validation: str | None = None
    """Folder of held-out pictures; without one nothing is evaluated while training."""
    validation_pictures: Positive = 24
    """At most so many of them, the first by name."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes beside each training process, at most one for each core; 0: none."""
    flip: bool = True
    """Mirror half of the crops."""

    @property
    def corpora(self) -> dict[str, float]:
        """Where the corpora lie, with their weights."""
        return {self.train: 1.0} if isinstance(self.train, str) else dict(self.train)


class Cca(Part):
    """The causal context adjustment term of the loss (docs/training.md has the formulas)."""

    mode: Literal["adversarial", "published", "off"] = "adversarial"
    """`published` keeps the published script's terms and collapses; it is there to compare."""
    weight: Weight = 1.0
    """Weight of the main model's half, the rate of y."""
    auxiliary_weight: Weight | None = None
    """Weight of the reversed gradient of the auxiliary model's half; default: `weight`."""
    hyper: Literal["reversed", "detached"] = "detached"
    """What the auxiliary model's gradient does to the hyper-decoder's outputs. Reversed, it drives
    the likelihoods of a tiny model to the clamp; detached, it does not (docs/ablation.md)."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which both halves grow from 0 to their weights."""
    proportional: bool = False
    """Scale both halves by the run's rate weight: the gap then weighs as a share of the rate."""
    clamp_warning: Rate = 0.05
    """Warn when this share of the auxiliary likelihoods lies at the clamp."""
    clamp_error: Rate = 0.5
    """Stop when this share does (never in mode `published`, which is known to collapse)."""

    @field_validator("mode", mode="before")
    @classmethod
    def _off_is_a_word(cls, mode: object) -> object:
        # YAML reads a bare off as false.
        return "off" if mode is False else mode

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.clamp_warning > self.clamp_error:
            raise ValueError("clamp_warning must not be above clamp_error")
        return self


class Loss(Part):
    """Weights of the terms that no stage changes."""

    mse_weight: Weight = 0.05
    """Weight of 255^2 times the mean squared error on [0, 1] values."""
    ms_ssim_weight: Weight = 64.0
    """Weight of 1 - MS-SSIM."""


class Plateau(Part):
    """Stop a stage early when the held-out cost no longer falls."""

    patience: Positive = 5
    """Evaluations in a row without an improvement."""
    improvement: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """The share by which the held-out cost must fall to count as one."""


class Checkpoint(Part):
    """When the state of training is kept."""

    every_steps: Positive = 5000
    """Optimizer steps between checkpoints."""
    every_minutes: Annotated[float, Field(gt=0)] = 15.0
    """Minutes between checkpoints: whichever comes first."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints kept; one alone would be lost with a disk that fills while writing."""
    keep_best: bool = True
    """Keep the checkpoint with the lowest held-out cost of the stage as well."""
    background: bool = True
    """Write while the next steps run."""


class Tracking(Part):
    """What MLflow is told."""

    experiment: str = "cca"
    """The experiment's name."""
    every_steps: Positive = 1
    """Steps between logged metrics."""
    pictures: Annotated[int, Field(ge=0)] = 2
    """Held-out pictures shown with their reconstruction and rate map at each evaluation."""


class Speed(Part):
    """How the same arithmetic is done faster; docs/training.md has measurements."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: transforms under autocast; parameters, entropy models and loss stay float32."""
    accumulate: Positive = 1
    """Parts a global batch is cut into, one after another on each process."""
    compile: bool = False
    """torch.compile the blocks of the transforms and supports."""
    cuda_graphs: bool = False
    """Replay the costly parts as CUDA graphs: a GPU with a small batch then waits for no Python."""
    channels_last: bool = True
    """Keep feature maps in NHWC order."""
    activation_checkpointing: bool = False
    """Recompute the transforms' activations in the backward pass: less memory, more time."""
    fused: bool = True
    """One kernel for Adam over all parameters; the same numbers on the same device."""

    @model_validator(mode="after")
    def _graphs_alone(self) -> Speed:
        # A second pass would write its gradients over those of the first.
        if self.cuda_graphs and (self.accumulate > 1 or self.activation_checkpointing):
            raise ValueError(
                "cuda_graphs goes with neither accumulate nor activation_checkpointing"
            )
        return self


class Stage(Part):
    """One stage of training: what it starts from, what it minimises, for how long."""

    name: Name
    """How runs, folders and other stages refer to it."""
    init: Name | None = None
    """The stage whose weights this one starts from; without one, random weights."""
    variable_rate: Annotated[list[RateWeight], Field(min_length=2, max_length=64)] | None = None
    """In place of `rate_weight`: one run, whose model serves all of these weights and the rates
    between them. Each sample of a batch is trained at one of them, drawn at random."""
    rate_weight: Annotated[
        RateWeight | Annotated[list[RateWeight], Field(min_length=1)] | None,
        Field(validate_default=True),
    ] = None
    """Weight of the rate in the loss; a list makes one run, and one model, for each."""
    distortion: Literal["mse", "ms-ssim"] = "mse"
    """What distortion is."""
    steps: Positive
    """Optimizer steps."""
    batch: Positive = 8
    """Pictures in a global batch: over all processes and all accumulated parts."""
    crop: Annotated[int, Field(gt=0, multiple_of=64)] = 256
    """Side of the square crops, in pixels."""
    lr: Rate = 1e-4
    """Adam's learning rate for the weights."""
    quantile_lr: Rate = 1e-3
    """Adam's learning rate for the quantiles of the factorised densities."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How lr goes from its value to final_lr * lr over the steps after the warm-up."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which lr grows from 0."""
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The share of lr that a falling schedule ends with."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient; main and auxiliary model are clipped apart."""
    frozen: list[str] = []
    """Parts of the model that don't change: names, or patterns such as `g_a*`."""
    plateau: Plateau | None = None
    """When to stop before `steps`."""
    cca: Cca | None = None
    """In place of the recipe's `cca`."""
    model: Literal["paper", "tiny"] | dict[str, Any] | None = None
    """In place of the recipe's `model`."""
    draws: Name | None = None
    """Stages of one seed that say the same here see the same pictures, crops and noise, at every
    rate: to compare them. Default: each stage its own pictures, each run its own noise."""

    @field_validator("variable_rate")
    @classmethod
    def _falling(cls, weights: list[float] | None) -> list[float] | None:
        if weights is not None and len(set(weights)) != len(weights):
            raise ValueError("names the same weight twice")
        # The order of a model's rates, whatever the recipe's is.
        return weights and sorted(weights, reverse=True)

    @field_validator("rate_weight")
    @classmethod
    def _one_of_two(
        cls, weight: float | list[float] | None, info: ValidationInfo
    ) -> float | list[float] | None:
        # A variable_rate that is wrong itself is not there.
        several = info.data.get("variable_rate", []) is not None
        if weight is None and not several:
            raise ValueError("is missing (or variable_rate, for one model at several weights)")
        if weight is not None and info.data.get("variable_rate"):
            raise ValueError("must be left out where variable_rate is given: that has one run")
        return weight

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.distortion == "ms-ssim" and self.crop < MS_SSIM_CROP:
            raise ValueError(f"ms-ssim needs a crop of {MS_SSIM_CROP} pixels or more")
        if self.warmup > self.steps:
            raise ValueError("warmup must not be longer than steps")
        weights = self.weights
        if len(set(weights)) != len(weights):
            raise ValueError("rate_weight names the same weight twice")
        return self

    @property
    def weights(self) -> Sequence[float | None]:
        """The rate weight of each of the stage's runs; None: that of a model for several."""
        return self.rate_weight if isinstance(self.rate_weight, list) else [self.rate_weight]


class Recipe(Part):
    """An experiment: what `accelerate launch recipes/train.py RECIPE.yaml` runs."""

    name: Name
    """Name of the experiment, which its runs and models carry."""
    out: str
    """Folder that runs are written to."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, the order and crops of pictures, and the training noise."""
    model: Literal["paper", "tiny"] | dict[str, Any] = "paper"
    """`paper`, `tiny`, or the fields of a CCAConfig that differ from the published one."""
    start: Literal["random", "pyramid"] = "random"
    """How untrained transforms start: as torch does, or as a pyramid of wavelets, which saves a
    short training the way from noise to a blurred picture (docs/training.md has measurements)."""
    processes: Positive | None = None
    """Processes to train with; default: one for each GPU, one on a CPU. Refused when it differs."""
    data: Data
    cca: Cca = Cca()
    loss: Loss = Loss()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, 0.999 say, which is what evaluations measure and
    what the final model, and a stage that starts from it, has. Default: the weights themselves."""
    stages: Annotated[list[Stage], Field(min_length=1)]
    evaluate_every: Positive = 5000
    """Steps between evaluations on the held-out pictures; there is always one at the end."""
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    speed: Speed = Speed()

    @field_validator("stages")
    @classmethod
    def _names(cls, stages: list[Stage]) -> list[Stage]:
        known: list[str] = []
        for stage in stages:
            if stage.name in known:
                raise ValueError(f"two stages are called {stage.name}")
            if stage.init is not None and stage.init not in known:
                raise ValueError(
                    f"stage {stage.name} starts from {stage.init}, which is no stage before it"
                    f" (those are: {', '.join(known) or 'none'})"
                )
            known.append(stage.name)
        return stages

    @property
    def digest(self) -> str:
        """Hex SHA-256 of everything the recipe says."""
        return _digest(self.model_dump(mode="json"))

    def runs(self) -> list[Run]:
        """Return one run for each stage and rate weight, in an order in which parents come first.

        Raises `RecipeError` when a stage starts from one of several runs and doesn't say which.
        """
        made: dict[str, list[Run]] = {}
        for stage in self.stages:
            made[stage.name] = [
                self._run(stage, weight, made.get(stage.init or "", [])) for weight in stage.weights
            ]
        return [run for runs in made.values() for run in runs]

    def _run(self, stage: Stage, weight: float | None, parents: list[Run]) -> Run:
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

    @property
    def variable_rate(self) -> tuple[float, ...]:
        """The rate weights of a model for several rates, falling; () for a single rate."""
        return tuple(self.stage.variable_rate or ())

    @property
    def cca(self) -> Cca:
        """The CCA term that holds for this run."""
        return self.stage.cca or self.recipe.cca

    @property
    def model(self) -> str | dict[str, Any]:
        """The architecture that holds for this run."""
        return self.stage.model or self.recipe.model

    @property
    def complete(self) -> bool:
        """Whether the run has been trained to its end, in its folder: to as many steps as now."""
        try:
            state = json.loads((self.folder / "run.json").read_text())
        except (OSError, ValueError):
            return False
        if not isinstance(state, dict) or state.get("done") is not True:
            return False
        return bool(state.get("steps", self.stage.steps) >= self.stage.steps)

    def decisive(self) -> dict[str, Any]:
        """Return what decides the numbers of the run: neither places, nor speed, nor logging."""
        stage = self.stage.model_dump(mode="json", exclude={"cca", "model", "rate_weight", "steps"})
        data = self.recipe.data
        thresholds = {"clamp_warning", "clamp_error"}
        return {
            **stage,
            "rate_weight": self.rate_weight,
            "seed": self.recipe.seed,
            "model": self.model,
            "start": self.recipe.start,
            "cca": self.cca.model_dump(mode="json", exclude=thresholds),
            "loss": self.recipe.loss.model_dump(mode="json"),
            "ema": self.recipe.ema,
            "flip": data.flip,
            "block": data.block,
            "augment": data.augment.model_dump(mode="json") if data.augment else None,
            "steps": self.stage.steps if self.stage.schedule != "constant" else None,
            "precision": self.recipe.speed.precision,
        }


def _parent(stage: Stage, weight: float | None, parents: list[Run]) -> Run | None:
    if stage.init is None:
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


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
