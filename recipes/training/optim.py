"""Optimizers over groups of parameters; each group's gradient is clipped apart from the others'."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from recipes.config.optimizing import OF_MATRICES, Optimizer
from recipes.config.schema import Run
from recipes.training.clipping import Clipping, NonFiniteError


class ClippedAdam(Clipping, torch.optim.Adam):
    """Adam, with or without decoupled weight decay, that clips."""

    def __init__(self, groups: Iterable[dict[str, Any]], **options: Any) -> None:
        """`options` are torch's own: `betas`, `fused`, `capturable`, ..."""
        super().__init__(groups, **options)
        self.partitioned = False
        self.norms = {}

    @torch.no_grad()
    # torch's own step returns what a closure does; here there is none.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Clip, then step; `closure` is not supported."""
        assert closure is None
        self.clip()
        super().step()


class GuardedAdam(ClippedAdam):
    """`ClippedAdam` whose steps don't wait for the device, as a CUDA graph's can't.

    A step whose gradient, or `loss`, is not finite changes nothing; `check` tells of all since it
    was last asked. Learning rates are tensors on the device, to be filled. All parameters have
    gradients.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], device: torch.device, **options: Any
    ) -> None:
        moved = [{**group, "lr": torch.tensor(group["lr"], device=device)} for group in groups]
        super().__init__(moved, **options, fused=True, capturable=device.type == "cuda")
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
        # torch's fused Adam leaves out a step for which this is not 0.
        self.found_inf.copy_(~finite)
        self._left_out += self.found_inf
        for group in self.param_groups:
            if "clip" in group:
                scale = (group["clip"] / (norms[group["name"]] + 1e-6)).clamp(max=1.0)
                torch._foreach_mul_(gradients[group["name"]], scale)
        torch.optim.Adam.step(self)

    def check(self) -> None:
        """Record the norms of the last step; raises `NonFiniteError` if a step was left out."""
        left_out, loss = torch.stack([self._left_out, self.loss]).tolist()
        self._left_out.zero_()
        if not math.isfinite(loss):
            raise NonFiniteError("the loss is not finite")
        self._check([group["name"] for group in self.param_groups], self._measured)
        if left_out:
            raise NonFiniteError("an earlier step's loss or gradient is not finite")

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Let no step change anything inside the block; such steps do not count as left out."""
        self.loss.fill_(math.inf)
        try:
            yield
        finally:
            self.loss.zero_()
            self._left_out.zero_()


def make_optimizer(
    groups: Iterable[dict[str, Any]], run: Run, *, guarded: bool = False
) -> ClippedAdam:
    """Return the run's optimizer over `groups` (each with `name` and `params`).

    `guarded` makes it a `GuardedAdam`, which is always fused. Raises `RecipeError` for one whose
    package is not installed.
    """
    stage, asked = run.stage, run.optimizer
    own = [
        {**group, "lr": stage.quantile_lr, "weight_decay": 0.0}
        if group["name"] == "quantiles"
        else {**group, "lr": stage.lr, "clip": stage.clip, "weight_decay": asked.weight_decay}
        for group in groups
    ]
    if asked.name in OF_MATRICES:
        from recipes.training.matrices import of_matrices

        made: ClippedAdam = of_matrices(own, stage, asked)
        return made
    options = adam_options(asked)
    if guarded:
        return GuardedAdam(own, own[0]["params"][0].device, **options)
    return ClippedAdam(own, fused=run.speed.fused, **options)


def adam_options(asked: Optimizer) -> dict[str, Any]:
    """Return torch's options of Adam or AdamW."""
    options: dict[str, Any] = {"betas": asked.decays, "eps": asked.eps}
    return options | ({"decoupled_weight_decay": True} if asked.name == "adamw" else {})
