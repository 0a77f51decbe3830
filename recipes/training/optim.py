"""Adam over groups of parameters, with each group's gradient clipped apart, and the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.common.errors import RunError
from recipes.config.schema import Stage


class NonFiniteError(RunError):
    """A loss or gradient is not a number, or infinite; nothing has been stepped."""


class ClippedAdam(torch.optim.Adam):
    """Adam that clips the gradient of each group that has `clip`, apart from the others.

    Clipping belongs to the step, because a sharding wrapper hands the optimizer one group at a
    time, flat, and of that a part: with `partitioned`, norms are summed over processes. `norms`
    has those of the last step. A gradient that is not finite raises `NonFiniteError` before its
    group is stepped, and where the groups come together, before any is.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **options: Any) -> None:
        """`options` are torch's own: `fused`, `capturable`."""
        super().__init__(groups, betas=(0.9, 0.999), **options)
        self.partitioned = False
        self.norms: dict[str, float] = {}

    @torch.no_grad()
    # torch's own step returns what a closure does; here there is none.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Clip, then step; `closure` is not supported."""
        assert closure is None
        gradients = self._gradients()
        norms = torch.stack([self._norm(grads) for grads in gradients.values()])
        self._check(gradients, norms)
        for group in self.param_groups:
            if "clip" in group and group["name"] in gradients:
                scale = min(1.0, group["clip"] / (self.norms[group["name"]] + 1e-6))
                torch._foreach_mul_(gradients[group["name"]], scale)
        super().step()

    def _check(self, names: Iterable[str], norms: Tensor) -> None:
        """Take down the `norms` of the groups `names`; raises `NonFiniteError`."""
        self.norms.update(zip(names, norms.tolist(), strict=True))
        bad = [name for name in names if not math.isfinite(self.norms[name])]
        if bad:
            raise NonFiniteError(f"the gradient of {' and '.join(bad)} is not finite")

    def _gradients(self) -> dict[str, list[Tensor]]:
        """Return the gradients of each group that has any."""
        return {
            group["name"]: [p.grad for p in group["params"] if p.grad is not None]
            for group in self.param_groups
            if any(p.grad is not None for p in group["params"])
        }

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.partitioned:
            square = norm.square()
            dist.all_reduce(square)
            return square.sqrt()
        return norm


class GuardedAdam(ClippedAdam):
    """`ClippedAdam` whose steps don't wait for the device, as a CUDA graph's can't.

    A step whose gradient, or `loss`, is not finite changes nothing; `check` tells of all since it
    was last asked. Learning rates are tensors on the device, to be filled. All parameters have
    gradients.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], device: torch.device) -> None:
        moved = [{**group, "lr": torch.tensor(group["lr"], device=device)} for group in groups]
        super().__init__(moved, fused=True, capturable=device.type == "cuda")
        self.loss = torch.zeros((), device=device)
        self.found_inf = torch.zeros((), device=device)
        self._measured = torch.zeros(len(moved), device=device)
        self._left_out = torch.zeros((), device=device)

    @torch.no_grad()
    # torch's own step returns what a closure does; here there is none.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Clip, then step, unless something is not finite; `closure` is not supported."""
        assert closure is None
        gradients = self._gradients()
        norms = {name: self._norm(grads) for name, grads in gradients.items()}
        self._measured.copy_(torch.stack(list(norms.values())))
        finite = self._measured.isfinite().all() & self.loss.isfinite()
        # torch's own Adam leaves a step out that this says so of.
        self.found_inf.copy_(~finite)
        self._left_out += self.found_inf
        for group in self.param_groups:
            if "clip" in group:
                scale = (group["clip"] / (norms[group["name"]] + 1e-6)).clamp(max=1.0)
                torch._foreach_mul_(gradients[group["name"]], scale)
        torch.optim.Adam.step(self)

    def check(self) -> None:
        """Take down the norms of the last step; raises `NonFiniteError` if any was left out."""
        left_out, loss = torch.stack([self._left_out, self.loss]).tolist()
        self._left_out.zero_()
        if not math.isfinite(loss):
            raise NonFiniteError("the loss is not finite")
        self._check([group["name"] for group in self.param_groups], self._measured)
        if left_out:
            raise NonFiniteError("an earlier step's loss or gradient is not finite")

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Leave all steps out, and tell of none."""
        self.loss.fill_(math.inf)
        try:
            yield
        finally:
            self.loss.zero_()
            self._left_out.zero_()


def make_optimizer(
    groups: Iterable[dict[str, Any]], stage: Stage, *, fused: bool, guarded: bool = False
) -> ClippedAdam:
    """Return the stage's optimizer over `groups` (each with `name` and `params`).

    `guarded` makes it a `GuardedAdam`, which is always fused.
    """
    groups = [
        {**group, "lr": stage.quantile_lr}
        if group["name"] == "quantiles"
        else {**group, "lr": stage.lr, "clip": stage.clip}
        for group in groups
    ]
    if guarded:
        return GuardedAdam(groups, groups[0]["params"][0].device)
    return ClippedAdam(groups, fused=fused)


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
        mine = stage.quantile_lr if group["name"] == "quantiles" else rate
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(mine)
        else:
            group["lr"] = mine
    return rate
