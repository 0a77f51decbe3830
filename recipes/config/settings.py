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
    """Limit of the cache, in 10^9 bytes or as a size (500GB, 2TiB); the parts unused for longest
    are removed first."""


class Augmentation(Section):
    """Operations on crops on the device; every draw is a function of seed and position."""

    downscale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Smallest scale. Each crop draws one from [downscale, 1], which removes the artefacts of
    earlier compression. `crop` / `downscale` pixels a side are decoded for it."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of brightness, contrast and saturation; of hue a tenth of this."""


def _no_disk(value: object) -> object:
    return {"folder": NO_DISK} if value == NO_DISK else value


class Data(Section):
    """Where pictures come from."""

    train: Place | Annotated[dict[Place, CorpusWeight], Field(min_length=1)]
    """Folder or URL of shards that `pipeline shard` wrote, or a pattern of other tars that ends in
    .tar; or several of these with their weights: {shards/imagenet: 3, shards/flickr: 1}."""
    split: Name = "train"
    """The split of those shards to train on."""
    block: Positive | None = None
    """Shards that are shuffled together (docs/streaming.md has measurements); default: 8."""
    groups: Annotated[Positive, AfterValidator(_power_of_two)] | None = None
    """Parts into which each corpus is cut, a power of two. A node reads its own parts, so choose at
    least as many as there will be nodes; default: 64."""
    cache: Annotated[ShardCache, BeforeValidator(_no_disk)] = ShardCache()
    """The cache for shards behind a URL; with `none`, each process reads into its memory."""
    augment: Augmentation | None = None
    validation: Folder | None = None
    """Folder of held-out pictures for evaluations while training."""
    validation_pictures: Positive = 24
    """The largest number of them to use, the first by name."""
    held_out: Annotated[int, Field(ge=0), Number] = 0
    """Without `validation`: number of pictures of the shards to evaluate on, which are then never
    trained on. Without either key, nothing is evaluated while training."""
    test: Folder | None = None
    """Folder of pictures for the reports of a plan, which training never sees; default:
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
    """The form of the loss. `published` has the published script's terms, and collapses; it is only
    there for comparisons."""
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
    """Scale both halves by the run's rate weight, so that the gap counts as a share of the rate."""
    early_share: Rate | None = None
    """Pull the first half of the slices (the first two of five) towards this share of y's bits, in
    any mode, including `off`. Default: no pull."""
    early_weight: Weight = 1.0
    """Weight of the squared distance from `early_share`, times the rate of y."""
    clamp_warning: Rate = 0.05
    """Warn if this share of the auxiliary likelihoods is at the clamp."""
    clamp_error: Rate = 0.5
    """Stop if this share is at the clamp, except in mode `published`, which always collapses."""

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
    """Divide each picture's loss by its rate weight to this power; 0.5, the root, keeps one of
    several rates from outweighing the others."""


class Plateau(Section):
    """Lower the learning rate, or stop a stage early, when the held-out cost no longer falls."""

    patience: Positive = 5
    """Evaluations in a row without an improvement."""
    improvement: Annotated[float, Field(ge=0, lt=1)] = 0.001
    """The share by which the held-out cost must fall to count as an improvement."""
    factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The factor of lr at a plateau; moments stay. Default: a plateau ends the stage."""
    reductions: Positive = 3
    """Plateaus that lower lr by `factor`; the next one ends the stage."""


class Checkpoint(Section):
    """When training writes checkpoints, and which ones stay."""

    every_steps: Positive = 5000
    """Optimizer steps between checkpoints."""
    every_minutes: Annotated[float, Field(gt=0)] = 15.0
    """Minutes between checkpoints, if these come before `every_steps`."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Number of newest checkpoints kept; a single one could be lost if the disk fills up."""
    keep_best: bool = True
    """Keep the checkpoint with the lowest held-out cost of the stage as well."""
    background: bool = True
    """Write checkpoints while the next steps run."""
    spike: Annotated[float, Field(gt=1)] | None = 20.0
    """Keep the checkpoint before a step whose loss or gradient is more than this many times its
    median over the last 200 steps, so that --from can go back to it. Null turns this off."""


class Launch(Section):
    """How processes that train together detect one that hangs."""

    patience: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without progress after which they name the one that hangs, and end (code 75)."""


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
    """Settings that make steps faster; docs/training.md has measurements."""

    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16: transforms under autocast; parameters, entropy models and loss stay float32. auto: bf16
    if this machine is faster with it; a run keeps the precision with which it began."""
    accumulate: Positive = 1
    """Parts into which the batch of each process is cut, computed one after another."""
    compile: bool | Literal["auto"] = False
    """torch.compile the blocks of transforms and supports; auto: on a GPU that Triton supports."""
    cuda_graphs: bool | Literal["auto"] = False
    """Replay steps as CUDA graphs, so that a GPU with a small batch does not wait for Python; auto:
    on a GPU, unless DeepSpeed or the optimizer prevents it."""
    channels_last: bool = True
    """Keep feature maps in NHWC order."""
    activation_checkpointing: bool = False
    """Recompute the transforms' activations in the backward pass, for less memory and more time."""
    threads: Annotated[int, Field(gt=0, le=1024), Number] | None = None
    """Threads of a process on a CPU. They decide in which order sums are added, so a run keeps the
    number with which it began, and OMP_NUM_THREADS has no effect. Default: the machine's cores,
    divided among the processes, or 1 if a step is so little work that more would not pay."""
    fused: bool = True
    """Use one kernel for Adam over all parameters, with the same results on the same device."""

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
