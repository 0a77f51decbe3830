"""Optimizers over groups of parameters; each group's gradient is clipped apart from the others'."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.common.errors import RunError
from recipes.config.optimizing import OF_MATRICES, Optimizer
from recipes.config.schema import Run

MOMENTS = ("exp_avg", "exp_avg_sq")


class NonFiniteError(RunError):
    """A loss or gradient is not a number, or infinite; nothing has been stepped."""


class Clipping:
    """What every optimizer here has beside torch's own: clipping, and state by parameter.

    Clipping belongs to the step, because a sharding wrapper hands the optimizer one group at a
    time, flat, and of that a part: with `partitioned`, norms are summed over processes. `norms`
    has those of the last step, by the groups' names; groups of one name are clipped as one. A
    gradient that is not finite raises `NonFiniteError` before its group is stepped, and where the
    groups come together, before any is.
    """

    param_groups: list[dict[str, Any]]
    state: Any
    partitioned: bool
    norms: dict[str, float]

    def clip(self) -> None:
        """Clip the gradients of each group that has `clip`."""
        gradients = self._gradients()
        norms = torch.stack([self._norm(grads) for grads in gradients.values()])
        self._check(gradients, norms)
        for name, limit in self._limits().items():
            if name in gradients:
                scale = min(1.0, limit / (self.norms[name] + 1e-6))
                torch._foreach_mul_(gradients[name], scale)

    def kept(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the state of a parameter, by names that `restore` knows; {} before its first step.

        The number of steps is not among it.
        """
        state = self.state.get(parameter, {})
        return {key: state[key] for key in MOMENTS if key in state}

    def restore(
        self, group: dict[str, Any], parameter: nn.Parameter, given: Mapping[str, Tensor], step: int
    ) -> None:
        """Take up what `kept` returned after `step` steps; raises KeyError for what is missing."""
        place = parameter.device if group.get("fused") else torch.device("cpu")
        self.state[parameter] = {"step": torch.tensor(float(step), device=place)} | {
            # In the parameter's layout, which a fused step takes for granted.
            key: torch.empty_like(parameter).copy_(given[key])
            for key in MOMENTS
        }

    def _limits(self) -> dict[str, float]:
        return {one["name"]: one["clip"] for one in self.param_groups if "clip" in one}

    def _check(self, names: Iterable[str], norms: Tensor) -> None:
        """Take down the `norms` of the groups `names`; raises `NonFiniteError`."""
        self.norms.update(zip(names, norms.tolist(), strict=True))
        bad = [name for name in names if not math.isfinite(self.norms[name])]
        if bad:
            raise NonFiniteError(f"the gradient of {' and '.join(bad)} is not finite")

    def _gradients(self) -> dict[str, list[Tensor]]:
        """Return the gradients of each group that has any."""
        found: dict[str, list[Tensor]] = {}
        for group in self.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                found.setdefault(group["name"], []).extend(gradients)
        return found

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.partitioned:
            square = norm.square()
            dist.all_reduce(square)
            return square.sqrt()
        return norm


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
        """Let no step change anything inside, and forget afterwards that steps were left out."""
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
