"""The state of training as tensors by name, on one process, whatever holds it in the meantime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipes.training.clipping import Clipping

# Returns a copy on the CPU of the tensor that has a name in the state.
Copy = Callable[[str, Tensor], Tensor]
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def contiguous(name: str, tensor: Tensor) -> Tensor:
    """Return a copy on the CPU, in the order of its indices, in memory of its own."""
    return tensor.detach().to("cpu", copy=True).contiguous()


class Copies:
    """Makes copies on the CPU in memory that is kept for the next ones.

    New memory, which the system clears page by page, would take longer than the copy. What comes
    from a CPU's memory is put in the order of its indices, in which it is written. Each copy is
    valid until the next of its name.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._promised: list[tuple[Tensor, Tensor]] = []

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the copy of `tensor`, the one called `name`."""
        place = self._place(name, tensor)
        _fill(place, tensor.detach())
        return place

    def later(self, name: str, tensor: Tensor) -> Tensor:
        """Return memory for a copy of `tensor`, which must not change until `make` fills it.

        A tensor that is not in the CPU's memory is copied at once.
        """
        if tensor.device.type != "cpu":
            return self(name, tensor)
        place = self._place(name, tensor)
        self._promised.append((place, tensor.detach()))
        return place

    def make(self) -> None:
        """Make the copies that were promised."""
        promised, self._promised = self._promised, []
        for place, tensor in promised:
            _fill(place, tensor)

    def _place(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            layout = (
                torch.contiguous_format if tensor.device.type == "cpu" else torch.preserve_format
            )
            kept = torch.empty_like(tensor, device="cpu", requires_grad=False, memory_format=layout)
            self._kept[name] = kept
        return kept


def _fill(place: Tensor, tensor: Tensor) -> None:
    """Copy `tensor` to `place`, of its shape and type.

    From memory to memory NumPy does, in a third of the processor's time that torch takes for what
    lies channels last, and on this thread alone, so that those that compute wait for none.
    """
    if tensor.device.type == "cpu":
        np.copyto(_numbers(place), _numbers(tensor))
    else:
        place.copy_(tensor)


def _numbers(tensor: Tensor) -> Any:
    """Return a view of the memory of `tensor` as integers of its numbers' width."""
    return tensor.view(_INTEGERS[tensor.element_size()]).numpy()


def gather(module: nn.Module, optimizer: Clipping, copy: Copy = contiguous) -> dict[str, Tensor]:
    """Return copies on the CPU of all weights and of the optimizer's state, made by `copy`.

    It makes those of what only the optimizer's step changes. Buffers, which a forward pass may
    change, are copied at once.
    """
    state = {}
    stepped = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in module.state_dict().items():
        made_by = copy if name in stepped else contiguous
        state[f"weights.{name}"] = made_by(f"weights.{name}", tensor)
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
