"""The state of training as tensors by name, on one process, whatever holds it in the meantime."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from recipes.training.clipping import Clipping


def gather(module: nn.Module, optimizer: Clipping) -> dict[str, Tensor]:
    """Return copies on the CPU of all weights and of the optimizer's state."""
    state = {f"weights.{name}": copied(tensor) for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, tensor in optimizer.kept(parameter).items():
            state[f"{key}.{name}"] = copied(tensor)
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


def copied(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, in the order of its indices."""
    return tensor.detach().to("cpu", copy=True).contiguous()
