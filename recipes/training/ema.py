"""An exponential moving average of the weights, which evaluations and the final model have.

Source: Polyak and Juditsky's averaging (1992) in its exponential form. After step t (from 1) the
average moves by 1 - d of the way to the weights, d = min(decay, t / (t + 9)): so it forgets how a
run began. It has no state but itself and the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recipes.training.state import Copy, contiguous

KIND = "ema"


class Average:
    """The average of the parameters of `module` that are trained; on their devices, like them."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start at the parameters as they are."""
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.decay = decay
        self._names = [name for name, _ in trained]
        self._weights: list[Tensor] = [parameter for _, parameter in trained]
        self._average = [parameter.detach().clone() for parameter in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after `step` steps, the first being 1."""
        decay = min(self.decay, step / (step + 9))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module have the average inside, and its weights again afterwards."""
        kept = [weight.detach().clone() for weight in self._weights]
        self._write(self._average)
        try:
            yield
        finally:
            self._write(kept)

    def gather(self, copy: Copy = contiguous) -> dict[str, Tensor]:
        """Return copies on the CPU, made by `copy`, by `ema.` and the parameter's name."""
        pairs = zip(self._names, self._average, strict=True)
        return {f"{KIND}.{name}": copy(f"{KIND}.{name}", tensor) for name, tensor in pairs}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `gather` returned."""
        for name, tensor in zip(self._names, self._average, strict=True):
            tensor.copy_(state[f"{KIND}.{name}"])

    @torch.no_grad()
    def _write(self, tensors: list[Tensor]) -> None:
        # Into the weights' own memory, which sharding wrappers have views of.
        for weight, tensor in zip(self._weights, tensors, strict=True):
            weight.copy_(tensor)
