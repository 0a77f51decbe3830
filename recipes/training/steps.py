"""One optimizer step over the parts of a batch, by whichever way a recipe's `speed` asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.codec import Config, Noise
from pipeline.common.addresses import text_seed
from recipes.config.schema import Run
from recipes.training.clipping import Clipping, NonFiniteError
from recipes.training.losses import Weights, weights_at
from recipes.training.module import METRICS, TrainingModule
from recipes.training.noise import draw_noise, draw_rates, spread_rates

# Flags that the processes agree on, as numbers after the metrics.
FLAGS = ("stop", "due")

# The metrics and flags of a step, by name.
Metrics = dict[str, float]
# Takes a process's `METRICS`; returns the means over processes of them and of the `FLAGS`.
Reduce = Callable[[Tensor], Tensor]
# Called by a stepper before it changes weights or the optimizer's state.
BeforeChange = Callable[[], None]


def nothing() -> None:
    """Do nothing: the default for `before_change`."""


@dataclass(frozen=True)
class Piece:
    """The inputs of a pass: a part of this process's batch."""

    x: Tensor
    noise: Noise
    weights: Weights
    rates: Tensor | None


def pieces(
    run: Run, config: Config, images: Tensor, step: int, slots: Sequence[int]
) -> Iterator[Piece]:
    """Yield the parts of a process's batch of `run`, with their draws, at step `step`.

    `images` (n, 3, crop, crop) are uint8, or floats in [0, 1]; picture i has place `slots[i]`
    in the global batch. The model's `config` has the shapes of its noise.
    """
    x = images if images.is_floating_point() else images.float() / 255
    if run.speed.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    size = len(x) // run.speed.accumulate
    for start in range(0, len(x), size):
        places = slots[start : start + size]
        seeds = [text_seed(*_address(run, step), place) for place in places]
        noise = draw_noise(config, x.shape[-1], seeds, x.device)
        rates = _rates(run, config, step, places, seeds, x.device)
        yield Piece(x[start : start + size], noise, weights_at(step, run, rates), rates)


def _address(run: Run, step: int) -> tuple[object, ...]:
    return run.recipe.seed, "noise", run.stage.draws or run.id, step


def _rates(
    run: Run,
    config: Config,
    step: int,
    slots: Sequence[int],
    seeds: Sequence[int],
    device: torch.device,
) -> Tensor | None:
    """Return the rates of the pictures at `slots` of the global batch, as the stage draws them."""
    if run.stage.rates == "each":
        return draw_rates(config, seeds, device)
    batch = run.stage.shape(step).batch
    assert batch is not None
    return spread_rates(config, text_seed(*_address(run, step)), batch, slots, seeds, device)


class Eager:
    """Steps whose operations are launched one by one, under whatever Accelerate prepared."""

    def __init__(
        self, accelerator: Any, module: TrainingModule, optimizer: Clipping, parts: int
    ) -> None:
        self.accelerator, self.parts = accelerator, parts
        self.wrapped, self.stepper = accelerator.prepare(module, optimizer)

    def step(
        self, pieces: Iterable[Piece], reduce: Reduce, before_change: BeforeChange = nothing
    ) -> Metrics:
        """Do a step over `pieces`, `parts` of equal size; return what was `reduce`d.

        Raises `NonFiniteError`, on all processes, before anything is stepped. `before_change` is
        called between the last gradient and the optimizer's step; DeepSpeed steps before that.
        """
        metrics: Metrics = {}
        totals = torch.zeros(len(METRICS), device=self.accelerator.device)
        for number, piece in enumerate(pieces, 1):
            with self.accelerator.accumulate(self.wrapped):
                loss, means = self.wrapped(piece.x, piece.noise, piece.weights, piece.rates)
                totals += means / self.parts
                if number == self.parts:
                    # Before the backward pass, with which DeepSpeed steps.
                    metrics = checked(reduce(totals))
                self.accelerator.backward(loss)
                if number == self.parts:
                    before_change()
                self.stepper.step()
                self.stepper.zero_grad()
        return metrics


def checked(vector: Tensor) -> Metrics:
    """Return results of a `Reduce` by name; raises `NonFiniteError` if the loss is not finite."""
    metrics = dict(zip((*METRICS, *FLAGS), vector.tolist(), strict=True))
    if not math.isfinite(metrics["loss"]):
        raise NonFiniteError("the loss is not finite")
    return metrics
