"""The settings of a stage: every field with its meaning, range and default.

No torch here: a scheduler plans from a recipe alone. Paths are relative to the working folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from recipes.config.optimizing import Crop, Optimizer, Phase, Shape, named
from recipes.config.settings import (
    Cca,
    Data,
    Loss,
    Name,
    Number,
    Place,
    Plateau,
    Positive,
    Rate,
    RateWeight,
    Section,
    Word,
)

# MS-SSIM halves a picture four times and then lays an 11-pixel window on it.
MS_SSIM_CROP = 192


class Stage(Section):
    """One stage of training: its initial weights, its loss and its number of steps."""

    name: Name
    """The name by which runs, folders and other stages refer to it."""
    init: Place | None = None
    """The initial weights of this stage: an earlier stage, or any MODEL (a file or folder,
    `runs:/ID`, `models:/NAME@ALIAS`, or `box`, the model that comes with the package). Default:
    untrained weights, as `start` of the recipe says."""
    init_partial: bool = False
    """Take the weights that fit from `init`, if its model has another size."""
    variable_rate: Annotated[list[RateWeight], Field(min_length=2, max_length=64)] | None = None
    """Instead of `rate_weight`: one run, whose model codes at all of these weights and the rates
    between them. Each sample of a batch is trained at one of them, drawn at random."""
    rate_weight: Annotated[
        RateWeight | Annotated[list[RateWeight], Field(min_length=1)] | None,
        Field(validate_default=True),
    ] = None
    """Weight of the rate in the loss; a list makes a run, and a model, for each weight."""
    distortion: Literal["mse", "ms-ssim", "mixed"] = "mse"
    """The distortion to train for; `mixed` is the sum of both, by their weights in `loss`."""
    rates: Literal["each", "spread"] = "each"
    """The rates of a batch's pictures, for a model with several rates. `each` draws one of the
    model's rates at random; `spread` also trains between them, evenly over each batch."""
    quantisation: Literal["noise", "rounded"] = "noise"
    """The latents on which training counts rates: with uniform noise added (`noise`), or rounded as
    in files, with straight-through gradients (`rounded`). The decoder always sees rounded ones."""
    steps: Positive
    """Optimizer steps."""
    batch: Positive = 8
    """Pictures in a global batch, over all processes and all accumulated parts."""
    crop: Crop = 256
    """Side of the square crops, in pixels."""
    mix: list[Shape] = Field(default_factory=list)
    """Other crop sizes, with their batches, which steps use in turn with `crop`."""
    phases: list[Phase] = Field(default_factory=list)
    """Changes of crop and batch within the stage, each from a step on."""
    optimizer: Annotated[Optimizer, BeforeValidator(named)] | None = None
    """Replaces the recipe's `optimizer`."""
    lr: Rate = 1e-4
    """The optimizer's learning rate for the weights."""
    quantile_lr: Rate = 1e-3
    """Adam's learning rate for the quantiles of the factorised densities."""
    quantile_schedule: Literal["constant", "same"] = "constant"
    """`same`: quantile_lr follows lr's schedule."""
    schedule: Literal["constant", "cosine", "linear", "sqrt"] = "constant"
    """How lr falls to final_lr * lr over the steps after the warm-up; `sqrt` falls as 1 - the root
    of the elapsed share."""
    decay: Annotated[float, Field(gt=0, le=1), Number] = 1.0
    """The last share of these steps, during which the schedule falls; lr is constant before."""
    milestones: dict[Positive, Annotated[float, Field(gt=0, le=1), Number]] = Field(
        default_factory=dict
    )
    """Factors of lr from these steps on: {60000: 0.1, 80000: 0.01}."""
    restarts: list[Positive] = Field(default_factory=list)
    """Steps at which warm-up and schedule begin again; each schedule ends at the next restart."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which lr grows from 0."""
    final_lr: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The share of lr with which a falling schedule ends."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient; main and auxiliary model are clipped separately."""
    rate_warmup: Annotated[int, Field(ge=0), Number] = 0
    """Steps over which the weight of the rate grows from 0, so that distortion is learned first."""
    skip: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    """Steps whose batches are left out, such as one whose loss was not finite. They still count."""
    frozen: list[str] = Field(default_factory=list)
    """Parts of the model that are not trained: names, or patterns such as `hyper_*`."""
    plateau: Plateau | None = None
    """When to lower lr, or to stop before `steps`; needs `data.validation` or `data.held_out`."""
    cca: Cca | None = None
    """Replaces the recipe's `cca`."""
    loss: Loss | None = None
    """Replaces the recipe's `loss`."""
    data: Data | None = None
    """Replaces the whole of the recipe's `data`."""
    ema: Annotated[float, Field(ge=0, lt=1), Number] | None = None
    """Replaces the recipe's `ema`; 0 turns it off."""
    swa: Rate | None = None
    """Instead of `ema`: the plain mean of the weights over this last share of the steps
    (stochastic weight averaging). Before it, the weights themselves are evaluated."""
    model: Word | dict[str, Any] | None = None
    """Replaces the recipe's `model`."""
    calibrate: Annotated[int, Field(ge=0, le=4096), Number] = 0
    """Number of training crops, the first of the run, on which the trained model gets the scales
    that make its entropy networks quicker; 0 means no scales. See docs/codec.md."""
    draws: Name | None = None
    """Stages with the same seed and the same name here see the same pictures, crops and noise, at
    every rate, so that you can compare them. Default: each stage has its own pictures, and each
    run its own noise."""

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
        smallest = min(shape.crop for shape in self.shapes)
        if self.distortion != "mse" and smallest < MS_SSIM_CROP:
            raise ValueError(f"{self.distortion} needs a crop of {MS_SSIM_CROP} pixels or more")
        if self.rates == "spread" and self.variable_rate is None:
            raise ValueError("rates: spread needs variable_rate, a model for several")
        self._in_order()
        weights = self.weights
        if len(set(weights)) != len(weights):
            raise ValueError("rate_weight names the same weight twice")
        if len({"" if weight is None else f"{weight:g}" for weight in weights}) < len(weights):
            raise ValueError("rate_weight has two that are the same to six digits, as folders are")
        return self

    def _in_order(self) -> None:
        begins = [0, *self.restarts, self.steps]
        if begins != sorted(set(begins)):
            raise ValueError("restarts must rise, below steps")
        shortest = min(end - begin for begin, end in pairwise(begins))
        if self.warmup > shortest:
            raise ValueError("warmup must not be longer than steps (or those between restarts)")
        starts = [0, *(phase.step for phase in self.phases)]
        if starts != sorted(set(starts)):
            raise ValueError("phases must begin at steps that rise")

    @property
    def shapes(self) -> list[Shape]:
        """All that steps may have, each with its batch; the first one is `crop` and `batch`."""
        return [shape for _, shapes in self.spans for shape in shapes]

    @cached_property
    def spans(self) -> list[tuple[int, list[Shape]]]:
        """The first step of each phase, and the shapes that its steps take in turn."""
        own: list[tuple[int, int, list[Shape]]] = [
            (0, self.batch, [Shape(crop=self.crop), *self.mix])
        ]
        own += [(one.step, one.batch or self.batch, [one, *one.mix]) for one in self.phases]
        return [
            (start, [Shape(crop=one.crop, batch=one.batch or batch) for one in shapes])
            for start, batch, shapes in own
        ]

    def place(self, step: int) -> tuple[int, int]:
        """Return which of `shapes` a step has, and how many steps had that one before it."""
        kinds = 0
        for start, end, shapes in self._phases():
            if step < end:
                turn, number = divmod(step - start, len(shapes))
                return kinds + number, turn
            kinds += len(shapes)
        raise AssertionError(step)

    def together(self, kind: int) -> range:
        """Return the numbers of the shapes that steps take in turn with number `kind`."""
        first = 0
        for _, shapes in self.spans:
            if kind < first + len(shapes):
                return range(first, first + len(shapes))
            first += len(shapes)
        raise AssertionError(kind)

    def shape(self, step: int) -> Shape:
        """Return the crops of a step, with their batch."""
        return self.shapes[self.place(step)[0]]

    def _phases(self) -> list[tuple[int, float, list[Shape]]]:
        spans = self.spans
        ends = [*(start for start, _ in spans[1:]), float("inf")]
        return [(start, end, shapes) for (start, shapes), end in zip(spans, ends, strict=True)]

    @property
    def weights(self) -> Sequence[float | None]:
        """The rate weight of each of the stage's runs; None: that of a model for several."""
        return self.rate_weight if isinstance(self.rate_weight, list) else [self.rate_weight]
