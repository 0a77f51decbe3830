"""The settings that a recipe is made of: data, loss, checkpoints, tracking, speed.

No torch here: a scheduler plans from a recipe alone. Paths are relative to the working folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pipeline.common.errors import UsageError
from pipeline.common.sizes import parse_size


class RecipeError(UsageError):
    """A recipe that can't be run as it stands; the message says where and what to do."""


def _no_word(value: object) -> object:
    # YAML reads yes and true as a truth value, which would pass for 1.
    if isinstance(value, bool):
        raise ValueError(f"is a number, not {value}")
    return value


def _no_url(place: str) -> str:
    if "://" in place:
        raise ValueError("must be a folder on this machine's file systems, not a URL")
    return place


def _place(place: str) -> str:
    if not place.strip() or "\0" in place:
        raise ValueError("must name a place")
    try:
        return str(Path(place).expanduser()) if place.startswith("~") else place
    except RuntimeError:
        raise ValueError(f"{place} is in the home of a user who is not known here") from None


def _power_of_two(number: int) -> int:
    if number & (number - 1):
        raise ValueError("must be a power of two: 64 or 128, say")
    return number


Number = BeforeValidator(_no_word)
Positive = Annotated[int, Field(gt=0), Number]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False), Number]
RateWeight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False), Number]
CorpusWeight = Annotated[float, Field(gt=0, allow_inf_nan=False), Number]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), Number]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
# An architecture, a preset of the default one, or ARCHITECTURE/PRESET.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")]
# A path, or a URL where one is allowed; ~ is the user's home.
Place = Annotated[str, AfterValidator(_place)]
# A folder that all processes can read.
Folder = Annotated[Place, AfterValidator(_no_url)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# Shards that are shuffled together unless a recipe says otherwise.
BLOCK = 8
# Parts that a corpus is cut into, of which each node reads its own.
GROUPS = 64


def _in_gigabytes(given: object) -> object:
    """Return a size with a unit, such as 500GB, in 10^9 bytes; a bare number counts those."""
    if isinstance(given, str) and given.strip()[-1:].isalpha():
        return parse_size(given) / 1e9
    return given


# In place of a cache's folder: nothing is kept on a disk.
NO_DISK = "none"


class ShardCache(Section):
    """The cache in which each machine keeps shards that lie behind a URL."""

    folder: Folder | None = None
    """On a local disk, shared by the machine's processes; default: ~/.cache/cca-pipeline/shards."""
    gigabytes: Annotated[
        float, BeforeValidator(_in_gigabytes), Field(gt=0, allow_inf_nan=False)
    ] = 64.0
    """Room for shards, in 10^9 bytes or as a size (500GB, 2TiB); unused longest goes first."""


class Augmentation(Section):
    """Operations on crops on the device; every draw is a function of seed and position."""

    downscale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest scale: one is drawn from [downscale, 1], which takes away the artefacts of pictures
    that were compressed before. `crop` / `downscale` pixels a side are decoded for it."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of brightness, contrast and saturation; of hue, a tenth of it."""


def _no_disk(value: object) -> object:
    return {"folder": NO_DISK} if value == NO_DISK else value


class Data(Section):
    """Where pictures come from."""

    train: Place | Annotated[dict[Place, CorpusWeight], Field(min_length=1)]
    """Folder or URL of shards, as `pipeline shard` wrote them, or a pattern of other tars that ends
    in .tar; several with their weights: {shards/imagenet: 3, shards/flickr: 1}."""
    split: Name = "train"
    """The split of those shards to train on."""
    block: Positive | None = None
    """Shards that are shuffled together (docs/streaming.md has measurements); default: 8."""
    groups: Annotated[Positive, AfterValidator(_power_of_two)] | None = None
    """Parts that each corpus is cut into, a power of two: a node reads its own ones, so take at
    least as many as there will be nodes; default: 64."""
    cache: Annotated[ShardCache, BeforeValidator(_no_disk)] = ShardCache()
    """The cache for shards behind a URL; `none`: no cache, each process reads into its memory."""
    augment: Augmentation | None = None
    validation: Folder | None = None
    """Folder of held-out pictures to judge by while training."""
    validation_pictures: Positive = 24
    """At most so many of them, the first by name."""
    held_out: Annotated[int, Field(ge=0), Number] = 0
    """Without `validation`: so many pictures of the shards to judge by, which are never trained on
    then. Without either nothing is evaluated while training."""
    test: Folder | None = None
    """Folder of pictures that a plan reports on, and that training never sees; default:
    `validation`."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes beside each training process, at most one for each core; 0: none."""
    flip: bool = True
    """Mirror half of the crops."""

    @property
    def corpora(self) -> dict[str, float]:
        """Where the corpora lie, with their weights."""
        return {self.train: 1.0} if isinstance(self.train, str) else dict(self.train)

    @property
    def judges(self) -> bool:
        """Whether there are pictures to judge by while training."""
        return self.validation is not None or self.held_out > 0

    @property
    def spared(self) -> int:
        """The number of pictures in the shards that are held out of training."""
        return self.held_out if self.validation is None else 0


class Cca(Section):
    """The causal context adjustment term of the loss (docs/training.md has the formulas)."""

    mode: Literal["adversarial", "published", "off"] = "adversarial"
    """`published` keeps the published script's terms and collapses; it is there to compare."""
    weight: Weight = 1.0
    """Weight of the main model's half, the rate of y."""
    auxiliary_weight: Weight | None = None
    """Weight of the reversed gradient of the auxiliary model's half; default: `weight`."""
    hyper: Literal["reversed", "detached"] = "detached"
    """The auxiliary model's gradient at the hyper-decoder's outputs. `reversed` drives the
    likelihoods of a tiny model to the clamp; `detached` does not (docs/ablation.md)."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which both halves grow from 0 to their weights."""
    proportional: bool = False
    """Scale both halves by the run's rate weight: the gap then weighs as a share of the rate."""
    early_share: Rate | None = None
    """Pull the share of y's bits that the first half of the slices has (of five, the first two) to
    this one; in any mode, `off` too. Default: not at all."""
    early_weight: Weight = 1.0
    """Weight of the squared distance from `early_share`, times the rate of y."""
    clamp_warning: Rate = 0.05
    """Warn when this share of the auxiliary likelihoods lies at the clamp."""
    clamp_error: Rate = 0.5
    """Stop when this share does (never in mode `published`, which is known to collapse)."""

    @property
    def half(self) -> float:
        """The weight of the reversed gradient: `auxiliary_weight`, or by default `weight`."""
        return self.weight if self.auxiliary_weight is None else self.auxiliary_weight

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


class Loss(Section):
    """Weights of the terms of the loss."""

    mse_weight: Weight = 0.05
    """Weight of 255^2 times the mean squared error on [0, 1] values."""
    ms_ssim_weight: Weight = 64.0
    """Weight of 1 - MS-SSIM."""
    balance: Annotated[float, Field(ge=0, le=1), Number] = 0.0
    """Divide each picture's loss by its rate weight to this power; 0.5, the root, keeps any rate of
    several from outweighing the others."""


class Plateau(Section):
    """Lower the learning rate, or stop a stage early, when the held-out cost no longer falls."""

    patience: Positive = 5
    """Evaluations in a row without an improvement."""
    improvement: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """The share by which the held-out cost must fall to count as one."""
    factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The factor that multiplies lr at a plateau, instead of ending the stage; moments stay."""
    reductions: Positive = 3
    """Plateaus that lower lr by `factor`; the next one ends the stage."""


class Checkpoint(Section):
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
    spike: Annotated[float, Field(gt=1)] | None = 20.0
    """Keep the checkpoint before a step whose loss or gradient is so many times its median over
    the last 200 steps: to go back to by --from. Null: don't look."""


class Launch(Section):
    """How processes that train together watch each other."""

    patience: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without progress after which they say which of them hangs, and end (code 75)."""


class Tracking(Section):
    """What is recorded in MLflow."""

    experiment: str = "cca"
    """The experiment's name."""
    every_steps: Positive = 1
    """Steps between logged metrics."""
    pictures: Annotated[int, Field(ge=0)] = 2
    """Held-out pictures shown with their reconstruction and rate map at each evaluation."""


# Stands for what suits the machine.
AUTO = "auto"


class Speed(Section):
    """How the same arithmetic is done faster; docs/training.md has measurements."""

    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16: transforms under autocast; parameters, entropy models and loss stay float32. auto: bf16
    where this machine computes faster in it; a run keeps to what it began with."""
    accumulate: Positive = 1
    """Parts a global batch is cut into, one after another on each process."""
    compile: bool | Literal["auto"] = False
    """torch.compile the blocks of the transforms and supports; auto: on a GPU that Triton knows."""
    cuda_graphs: bool | Literal["auto"] = False
    """Replay steps as CUDA graphs: a GPU with a small batch then waits for no Python; auto: on a
    GPU, where neither DeepSpeed nor the optimizer forbids it."""
    channels_last: bool = True
    """Keep feature maps in NHWC order."""
    activation_checkpointing: bool = False
    """Recompute the transforms' activations in the backward pass: less memory, more time."""
    threads: Annotated[int, Field(gt=0, le=1024), Number] | None = None
    """Threads that a process computes with on a CPU. They decide in which order sums are added, so
    a run keeps to those it began with, and OMP_NUM_THREADS decides nothing. Default: the cores that
    there are, shared by the processes; 1 for a step of so little work that more would not pay."""
    fused: bool = True
    """One kernel for Adam over all parameters; the same numbers on the same device."""

    @model_validator(mode="after")
    def _graphs_fused(self) -> Self:
        # Only the fused kernel can leave out a step that is not finite without being looked at.
        if self.cuda_graphs is True and not self.fused:
            raise ValueError("cuda_graphs needs fused")
        return self

    @property
    def undecided(self) -> bool:
        """Whether something is left for the machine to decide."""
        return AUTO in (self.precision, self.compile, self.cuda_graphs)


def fastest(given: object) -> object:
    """Return the settings of `speed: auto`: all that a machine can decide is left to it."""
    return dict.fromkeys(("precision", "compile", "cuda_graphs"), AUTO) if given == AUTO else given
