"""What all optimizers add to torch's: clipping by group, and state by parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.common.errors import RunError

MOMENTS = ("exp_avg", "exp_avg_sq")


class NonFiniteError(RunError):
    """A loss or gradient is NaN or infinite; no parameter has been stepped."""


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
        """Restore what `kept` returned after `step` steps; raises KeyError for what is missing."""
        place = parameter.device if group.get("fused") else torch.device("cpu")
        self.state[parameter] = {"step": torch.tensor(float(step), device=place)} | {
            # In the parameter's layout, which a fused step takes for granted.
            key: torch.empty_like(parameter).copy_(given[key])
            for key in MOMENTS
        }

    def _limits(self) -> dict[str, float]:
        return {one["name"]: one["clip"] for one in self.param_groups if "clip" in one}

    def _check(self, names: Iterable[str], norms: Tensor) -> None:
        """Record the `norms` of the groups `names`; raises `NonFiniteError`."""
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
