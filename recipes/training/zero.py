"""Gathers and restores the state of training that DeepSpeed ZeRO shares out over processes.

What is gathered is what `recipes.training.state` gathers on one process, so a checkpoint does not
say how it was trained, and any setting can go on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from recipes.launching import processes as launch
from recipes.training.clipping import MOMENTS, NonFiniteError
from recipes.training.optim import ClippedAdam
from recipes.training.state import Copy, contiguous, gather, restore


class Replicated:
    """Holds the state when every process has all of it."""

    # Whether what is gathered is the state itself, which stays as it is until the next step.
    lasting = True

    def gather(
        self, module: nn.Module, optimizer: ClippedAdam, wanted: bool, copy: Copy = contiguous
    ) -> dict[str, Tensor]:
        """Return the whole state, copied by `copy`, where it is `wanted`; all call this."""
        return gather(module, optimizer, copy) if wanted else {}

    def restore(
        self, module: nn.Module, optimizer: ClippedAdam, state: Mapping[str, Tensor], step: int
    ) -> None:
        """Take up the whole `state` after `step` steps."""
        restore(module, optimizer, state, step)

    def check(self) -> None:
        """Raise `NonFiniteError` when the last step was left out without saying so."""


class Sharded(Replicated):
    """Holds the state in a DeepSpeed engine; `engine` is the one that Accelerate prepared."""

    # It is put together for the moment.
    lasting = False

    def __init__(self, engine: Any, optimizer: ClippedAdam) -> None:
        self.zero = engine.optimizer
        self.stage = int(engine.zero_optimization_stage())
        optimizer.partitioned = True

    def gather(
        self, module: nn.Module, optimizer: ClippedAdam, wanted: bool, copy: Copy = contiguous
    ) -> dict[str, Tensor]:
        """Return the whole state, copied by `copy`; all processes are needed, and call this."""
        from deepspeed.utils import safe_get_full_optimizer_state

        with self._whole_weights(module):
            weights = {f"weights.{name}": t for name, t in module.state_dict().items()}
            state = {name: copy(name, tensor) for name, tensor in weights.items()}
        if not optimizer.state:
            return state
        self._link()
        for name, parameter in module.named_parameters():
            for key in MOMENTS if parameter.requires_grad else ():
                moment = safe_get_full_optimizer_state(parameter, key)
                shaped = moment.reshape(state[f"weights.{name}"].shape)
                state[f"{key}.{name}"] = copy(f"{key}.{name}", shaped)
        return state

    def restore(
        self, module: nn.Module, optimizer: ClippedAdam, state: Mapping[str, Tensor], step: int
    ) -> None:
        """Take up Adam's moments of `state`; the weights were given before the engine was made."""
        if not step:
            return
        for flat in self._flat():
            optimizer.state[flat] = {"step": torch.tensor(float(step), device=flat.device)} | {
                key: torch.zeros_like(flat) for key in MOMENTS
            }
        self._link()
        for name, parameter in module.named_parameters():
            for key in MOMENTS if parameter.requires_grad else ():
                self._set(parameter, state[f"{key}.{name}"], key)

    def check(self) -> None:
        """Raise `NonFiniteError` when DeepSpeed left the last step out: it doesn't say so."""
        if getattr(self.zero, "overflow", False):
            raise NonFiniteError("the gradient is not finite")

    def _flat(self) -> list[Tensor]:
        """Return the flat partitions of weights that the optimizer steps."""
        name = (
            "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        )
        flat: list[Tensor] = getattr(self.zero, name)
        return flat

    def _link(self) -> None:
        """Let each parameter find its part of the moments: made with the first group's step,
        before the other groups had any."""
        if self.stage < 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str) -> None:
        if self.stage < 3:
            from deepspeed.utils import safe_set_full_optimizer_state

            safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)
            return
        mine, _ = self.zero._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=True, optim_state_key=key
        )
        # Parts are equal in size, so the last ones may end beyond the parameter.
        start = mine.numel() * torch.distributed.get_rank()
        part = value.flatten()[start : start + mine.numel()]
        mine.zero_()
        mine[: part.numel()].copy_(part)

    def _whole_weights(self, module: nn.Module) -> AbstractContextManager[Any]:
        if self.stage < 3:
            return nullcontext()
        from deepspeed import zero

        gathered: AbstractContextManager[Any] = zero.GatheredParameters(list(module.parameters()))
        return gathered


def holding(accelerator: Any, prepared: Any, optimizer: ClippedAdam) -> Replicated:
    """Return how the processes hold what `accelerator.prepare` made."""
    if launch.sharded(accelerator):
        return Sharded(prepared, optimizer)
    return Replicated()
