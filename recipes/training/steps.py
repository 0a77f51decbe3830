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
from recipes.training.losses import Weights, weights_at
from recipes.training.module import METRICS, TrainingModule
from recipes.training.noise import draw_noise, draw_rates
from recipes.training.optim import ClippedAdam, NonFiniteError

# What the processes agree on after the metrics, as numbers.
FLAGS = ("stop", "due")

# The metrics and flags of a step, by name.
Found = dict[str, float]
# Takes a process's `METRICS`; returns the means over processes of them and of the `FLAGS`.
Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Piece:
    """What a pass is computed from: a part of this process's batch."""

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
    if run.recipe.speed.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    size = len(x) // run.recipe.speed.accumulate
    for start in range(0, len(x), size):
        draws, seed = run.stage.draws or run.id, run.recipe.seed
        seeds = [
            text_seed(seed, "noise", draws, step, place) for place in slots[start : start + size]
        ]
        noise = draw_noise(config, run.stage.crop, seeds, x.device)
        rates = draw_rates(config, seeds, x.device)
        yield Piece(x[start : start + size], noise, weights_at(step, run, rates), rates)


class Eager:
    """Steps whose operations are launched one by one, under whatever Accelerate prepared."""

    def __init__(
        self, accelerator: Any, module: TrainingModule, optimizer: ClippedAdam, parts: int
    ) -> None:
        self.accelerator, self.parts = accelerator, parts
        self.wrapped, self.stepper = accelerator.prepare(module, optimizer)

    def step(self, pieces: Iterable[Piece], reduce: Reduce) -> Found:
        """Do a step over `pieces`, `parts` of equal size; return what was `reduce`d.

        Raises `NonFiniteError`, on all processes, before anything is stepped.
        """
        found: Found = {}
        totals = torch.zeros(len(METRICS), device=self.accelerator.device)
        for number, piece in enumerate(pieces, 1):
            with self.accelerator.accumulate(self.wrapped):
                loss, metrics = self.wrapped(piece.x, piece.noise, piece.weights, piece.rates)
                totals += metrics / self.parts
                if number == self.parts:
                    # Before the backward pass, with which DeepSpeed steps.
                    found = checked(reduce(totals))
                self.accelerator.backward(loss)
                self.stepper.step()
                self.stepper.zero_grad()
        return found


def checked(vector: Tensor) -> Found:
    """Return what a `Reduce` gave by name; raises `NonFiniteError` if the loss is no number."""
    found = dict(zip((*METRICS, *FLAGS), vector.tolist(), strict=True))
    if not math.isfinite(found["loss"]):
        raise NonFiniteError("the loss is not finite")
    return found
