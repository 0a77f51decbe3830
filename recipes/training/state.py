"""The state of training as tensors by name, on one process, whatever holds it in the meantime."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


def gather(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies on the CPU of all weights and of Adam's moments."""
    state = {f"weights.{name}": copied(tensor) for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        moments = optimizer.state.get(parameter, {})
        for key in MOMENTS:
            if key in moments:
                state[f"{key}.{name}"] = copied(moments[key])
    return state


def restore(
    module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor], step: int
) -> None:
    """Give `optimizer` the moments that `gather` returned after `step` steps.

    `module` names its parameters, and has the weights already.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            place = parameter.device if group.get("fused") else torch.device("cpu")
            optimizer.state[parameter] = {"step": torch.tensor(float(step), device=place)} | {
                # In the parameter's layout, which a fused step takes for granted.
                key: torch.empty_like(parameter).copy_(state[f"{key}.{names[parameter]}"])
                for key in MOMENTS
            }


def part(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the tensors of one kind (`weights`, `exp_avg`, ...) by parameter name."""
    return {
        name.removeprefix(f"{kind}."): tensor
        for name, tensor in state.items()
        if name.startswith(f"{kind}.")
    }


def copied(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, in the order of its indices."""
    return tensor.detach().to("cpu", copy=True).contiguous()
