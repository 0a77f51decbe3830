"""An average of the weights, which evaluations and the final model use.

After step t (from 1) it moves by 1 - d of the way to the weights. `ema` is Polyak and Juditsky's
averaging (1992) in its exponential form, d = min(decay, t / (t + 9)), which forgets how a run
began. `swa` is the plain mean of the last steps, d = (n - 1) / n at the n-th of them and 0 before
(Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018).
Neither has a state but the average and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recipes.config.schema import Run
from recipes.training.state import Copy, contiguous

KIND = "ema"
# The share of itself that an average keeps after step t, the first being 1.
Decay = Callable[[int], float]


def decay_of(run: Run) -> Decay:
    """Return the decay of the run's average, as a function of the step."""
    if run.stage.swa is not None:
        return mean_of_last(run.stage.steps, run.stage.swa)
    assert run.ema is not None
    return moving(run.ema)


def moving(decay: float) -> Decay:
    """Return the decay of an exponential average that grows to `decay`."""
    return lambda step: min(decay, step / (step + 9))


def mean_of_last(steps: int, share: float) -> Decay:
    """Return the decay of the plain mean of the last `share` of `steps`, at least of the last."""
    before = steps - max(1, round(steps * share))

    def decay(step: int) -> float:
        number = step - before
        return (number - 1) / number if number > 0 else 0.0

    return decay


class Average:
    """The average of the parameters of `module` that are trained; on their devices, like them."""

    def __init__(self, module: nn.Module, decay: Decay) -> None:
        """Start at the parameters as they are."""
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.decay = decay
        self._names = [name for name, _ in trained]
        self._weights: list[Tensor] = [parameter for _, parameter in trained]
        self._average = [parameter.detach().clone() for parameter in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after `step` steps, the first being 1."""
        torch._foreach_lerp_(self._average, self._weights, 1 - self.decay(step))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the module the average inside the block, and its weights again afterwards."""
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
        """Restore the average that `gather` returned."""
        for name, tensor in zip(self._names, self._average, strict=True):
            tensor.copy_(state[f"{KIND}.{name}"])

    @torch.no_grad()
    def _write(self, tensors: list[Tensor]) -> None:
        # Into the weights' own memory, which sharding wrappers have views of.
        for weight, tensor in zip(self._weights, tensors, strict=True):
            weight.copy_(tensor)
