"""One optimizer step over the parts of a batch, by whichever way a recipe's `speed` asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.codec import Noise
from recipes.losses import Weights
from recipes.module import METRICS, TrainingModule
from recipes.optim import ClippedAdam, NonFiniteError

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
