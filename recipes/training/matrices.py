"""Optimizers that treat a kernel as a matrix: SOAP and Muon, from `pytorch-optimizer`.

Sources: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", arXiv 2409.11321; Jordan
et al., "Muon: An optimizer for hidden layers in neural networks", 2024, with the scale of a step
that makes it as long as Adam's (Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recipes.config.optimizing import Optimizer
from recipes.config.settings import RecipeError
from recipes.config.stage import Stage
from recipes.training.clipping import MOMENTS, Clipping

try:
    from pytorch_optimizer import SOAP, Muon
    from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
except ImportError as missing:
    raise RecipeError(
        "the optimizers soap and muon need the package pytorch-optimizer: install"
        " `cca-pipeline[optimizers]`, or name adam or adamw"
    ) from missing

# State of SOAP that is a list with a matrix for each side of a kernel; [] where there is none.
_SIDES = ("GG", "Q")


# mypy knows no type of a class of an extra.
class ClippedSoap(Clipping, SOAP):  # type: ignore[misc]
    """SOAP that clips. Its first step learns the basis alone and changes no weight."""

    def __init__(self, groups: list[dict[str, Any]], asked: Optimizer) -> None:
        super().__init__(
            groups,
            betas=asked.decays,
            eps=asked.eps,
            precondition_frequency=asked.precondition_every,
            max_precondition_dim=asked.precondition_up_to,
        )
        self.partitioned, self.norms = False, {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Clip, then step; `closure` is not supported."""
        assert closure is None
        self.clip()
        super().step()
        for state in self.state.values():
            # One layout at any time: sums in another order would differ after a restart.
            for key in MOMENTS:
                state[key] = state[key].contiguous()
            for key in _SIDES:
                state[key] = [side.contiguous() if len(side) else side for side in state[key]]

    def kept(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return the moments, and the matrices of each side as `GG_0`, `Q_0`, `GG_1`, ..."""
        state = self.state.get(parameter, {})
        sides = [
            (f"{key}_{number}", side)
            for key in _SIDES
            for number, side in enumerate(state.get(key) or [])
            if len(side)
        ]
        return super().kept(parameter) | dict(sides)

    def restore(
        self, group: dict[str, Any], parameter: nn.Parameter, given: Mapping[str, Tensor], step: int
    ) -> None:
        """Take up what `kept` returned after `step` steps; raises KeyError for what is missing."""
        group["step"] = step
        state = self.state[parameter]
        like = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        self.init_pre_conditioner(
            like,
            state,
            precondition_frequency=group["precondition_frequency"],
            shampoo_beta=group["betas"][1],
            max_precondition_dim=group["max_precondition_dim"],
        )
        for key in MOMENTS:
            state[key] = given[key].to(parameter.device, copy=True)
        for key in _SIDES:
            state[key] = [
                given[f"{key}_{number}"].to(parameter.device, copy=True) if len(side) else []
                for number, side in enumerate(state["GG"])
            ]


# As above.
class ClippedMuon(Clipping, Muon):  # type: ignore[misc]
    """Muon for the groups with `use_muon`, Adam for the others, that clips."""

    def __init__(self, groups: list[dict[str, Any]], asked: Optimizer) -> None:
        super().__init__(
            groups,
            momentum=asked.momentum,
            adamw_betas=asked.decays,
            adamw_eps=asked.eps,
            use_adjusted_lr=True,
        )
        self.partitioned, self.norms = False, {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Clip, then step; `closure` is not supported."""
        assert closure is None
        self.clip()
        super().step()

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        """Return the nearest orthogonal matrices, as the package does, in float32 on a CPU.

        There bfloat16, the package's choice, is slow, and on many kinds emulated.
        """
        matrices = [update.reshape(len(update), -1) for update in updates]
        turned = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
        stacked = torch.stack(
            [matrix.mT if turn else matrix for matrix, turn in zip(matrices, turned, strict=True)]
        )
        kind = torch.float32 if stacked.device.type == "cpu" else torch.bfloat16
        made = zero_power_via_newton_schulz_5(
            stacked, num_steps=group["ns_steps"], weights=group["ns_coeffs"], dtype=kind
        ).to(stacked.dtype)
        pairs = zip(made.unbind(), turned, strict=True)
        return [matrix.mT if turn else matrix for matrix, turn in pairs]

    def kept(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Return Muon's momentum, or Adam's moments."""
        state = self.state.get(parameter, {})
        return {key: state[key] for key in (*MOMENTS, "momentum_buffer") if key in state}

    def restore(
        self, group: dict[str, Any], parameter: nn.Parameter, given: Mapping[str, Tensor], step: int
    ) -> None:
        """Take up what `kept` returned after `step` steps; raises KeyError for what is missing."""
        group["step"] = step
        keys = ("momentum_buffer",) if group["use_muon"] else MOMENTS
        self.state[parameter] = {key: torch.empty_like(parameter).copy_(given[key]) for key in keys}


def of_matrices(groups: list[dict[str, Any]], stage: Stage, asked: Optimizer) -> Any:
    """Return the optimizer of matrices that is `asked` for, over groups as `make_optimizer` has."""
    if asked.name == "soap":
        return ClippedSoap([_unconditioned(group) for group in groups], asked)
    times = (asked.kernel_lr or stage.lr) / stage.lr
    parted = [part for group in groups for part in _parted(group, times)]
    return ClippedMuon(parted, asked)


def _unconditioned(group: dict[str, Any]) -> dict[str, Any]:
    # Quantiles are three numbers for each channel, which are no matrix: Adam steps them.
    return {**group, "max_precondition_dim": 0} if group["name"] == "quantiles" else group


def _parted(group: dict[str, Any], times: float) -> list[dict[str, Any]]:
    """Return the kernels of a group, `times` its learning rate, and the rest, for Adam."""
    kernels = [] if group["name"] == "quantiles" else list(filter(_is_kernel, group["params"]))
    known = set(kernels)
    rest = [parameter for parameter in group["params"] if parameter not in known]
    parts = [
        {**group, "params": kernels, "use_muon": True, "times": times},
        {**group, "params": rest, "use_muon": False},
    ]
    return [part for part in parts if part["params"]]


def _is_kernel(parameter: nn.Parameter) -> bool:
    """Tell whether a parameter is a dense kernel: a convolution's, or a linear layer's matrix."""
    return parameter.ndim in (2, 4) and min(parameter.shape[:2]) > 1
