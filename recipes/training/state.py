"""The state of training as tensors by name, on one process, whatever holds it in the meantime."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from recipes.training.clipping import Clipping

# Returns a copy on the CPU of the tensor that has a name in the state.
Copy = Callable[[str, Tensor], Tensor]


def contiguous(name: str, tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, in the order of its indices, in memory of its own."""
    return tensor.detach().to("cpu", copy=True).contiguous()


class Copies:
    """Makes copies on the CPU in memory that is kept for the next ones, whatever their layout.

    Training waits for this alone, so it does the least: new memory, which the system clears page by
    page, and another order of the values would each take longer than the copy. Each copy is valid
    until the next of its name.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the copy of `tensor`, the one called `name`."""
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            kept = self._kept[name] = torch.empty_like(tensor, device="cpu", requires_grad=False)
        return kept.copy_(tensor.detach())


def gather(module: nn.Module, optimizer: Clipping, copy: Copy = contiguous) -> dict[str, Tensor]:
    """Return copies on the CPU of all weights and of the optimizer's state, made by `copy`."""
    state = {}
    for name, tensor in module.state_dict().items():
        state[f"weights.{name}"] = copy(f"weights.{name}", tensor)
    for name, parameter in module.named_parameters():
        for key, tensor in optimizer.kept(parameter).items():
            state[f"{key}.{name}"] = copy(f"{key}.{name}", tensor)
    return state


def restore(module: nn.Module, optimizer: Clipping, state: Mapping[str, Tensor], step: int) -> None:
    """Give `optimizer` the state that `gather` returned after it had taken `step` steps.

    `module` names its parameters, and has the weights already.
    """
    if not step:
        return
    names = {parameter: name for name, parameter in module.named_parameters()}
    given = _by_parameter(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.restore(group, parameter, given[names[parameter]], step)


def _by_parameter(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of `state` by the parameter's name, then by their kind."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        kind, _, parameter = name.partition(".")
        found.setdefault(parameter, {})[kind] = tensor
    return found


def part(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the tensors of one kind (`weights`, `exp_avg`, ...) by parameter name."""
    return {
        name.removeprefix(f"{kind}."): tensor
        for name, tensor in state.items()
        if name.startswith(f"{kind}.")
    }
