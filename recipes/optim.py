"""Adam over groups of parameters, with each group's gradient clipped apart, and the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recipes.schema import Stage


class NonFiniteError(RuntimeError):
    """A loss or gradient is not a number, or infinite; nothing has been stepped."""


class ClippedAdam(torch.optim.Adam):
    """Adam that clips the gradient of each group that has `clip`, apart from the others.

    Clipping belongs to the step, because a sharding wrapper hands the optimizer one group at a
    time, flat, and of that a part: with `partitioned`, norms are summed over processes. `norms`
    has those of the last step. A gradient that is not finite raises `NonFiniteError` before its
    group is stepped, and where the groups come together, before any is.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> None:
        super().__init__(groups, betas=(0.9, 0.999), fused=fused)
        self.partitioned = False
        self.norms: dict[str, float] = {}

    @torch.no_grad()
    # torch's own step returns what a closure does; here there is none.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Clip, then step; `closure` is not supported."""
        assert closure is None
        gradients = {
            group["name"]: [p.grad for p in group["params"] if p.grad is not None]
            for group in self.param_groups
            if any(p.grad is not None for p in group["params"])
        }
        norms = torch.stack([self._norm(grads) for grads in gradients.values()])
        self.norms.update(zip(gradients, norms.tolist(), strict=True))
        bad = [name for name in gradients if not math.isfinite(self.norms[name])]
        if bad:
            raise NonFiniteError(f"the gradient of {' and '.join(bad)} is not finite")
        for group in self.param_groups:
            if "clip" in group and group["name"] in gradients:
                scale = min(1.0, group["clip"] / (self.norms[group["name"]] + 1e-6))
                torch._foreach_mul_(gradients[group["name"]], scale)
        super().step()

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.partitioned:
            square = norm.square()
            dist.all_reduce(square)
            return square.sqrt()
        return norm


def make_optimizer(groups: Iterable[dict[str, Any]], stage: Stage, *, fused: bool) -> ClippedAdam:
    """Return the stage's optimizer over `groups` (each with `name` and `params`)."""
    return ClippedAdam(
        [
            {**group, "lr": stage.quantile_lr}
            if group["name"] == "quantiles"
            else {**group, "lr": stage.lr, "clip": stage.clip}
            for group in groups
        ],
        fused=fused,
    )


def learning_rate(stage: Stage, step: int) -> float:
    """Return the weights' learning rate at step `step`, the first being 0."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    span = stage.steps - stage.warmup
    done = min(1.0, (step - stage.warmup) / max(1, span - 1))
    if stage.schedule == "constant":
        return stage.lr
    fall = done if stage.schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return stage.lr * (1 - fall * (1 - stage.final_lr))


def set_learning_rate(optimizer: torch.optim.Optimizer, stage: Stage, step: int) -> float:
    """Give the weights' groups the learning rate of `step`; return it."""
    rate = learning_rate(stage, step)
    for group in optimizer.param_groups:
        group["lr"] = stage.quantile_lr if group["name"] == "quantiles" else rate
    return rate
