"""The same arithmetic, done faster: bf16, torch.compile, recomputed activations.

All three are applied to the parts that cost, as the model names them. What lies between them stays
as it is: means, scales, rounding, entropy models and the loss in float32.
Without gradients the parts compute as the codec does, in float32 and uncompiled, so that what is
measured on held-out pictures is what a file will have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.codec.model import Trained
from recipes.config.settings import Speed
from recipes.training.module import TrainingModule

_MOST_GRAPHS = 256


def apply(module: TrainingModule, speed: Speed) -> None:
    """Change how the costly parts of `module` are computed; parameters stay the same."""
    for part in costly_parts(module):
        if speed.activation_checkpointing:
            part.forward = _recomputed(part.forward)
        if speed.precision == "bf16":
            part.forward = _in_bf16(part.forward)
    if speed.compile:
        # Beyond this number, which the runs of a recipe share, nothing more would be compiled.
        torch._dynamo.config.recompile_limit = _MOST_GRAPHS
        for stack in stacks(module):
            stack.compile(dynamic=False)


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which nothing is compiled: pictures of any size would each need it."""
    context: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return context


def stacks(module: TrainingModule) -> Iterator[nn.Module]:
    """Yield the sequences of small operations: what is of one shape shares a compiled graph."""
    for part in _parts(module):
        yield from part.stacks()


def costly_parts(module: TrainingModule) -> Iterator[nn.Module]:
    """Yield the modules in which nearly all of the arithmetic is done; each is called whole."""
    for part in _parts(module):
        yield from part.costly_parts()


def _parts(module: TrainingModule) -> list[Trained]:
    return [part for part in (module.model, module.auxiliary) if part is not None]


def _in_bf16(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def lower(*inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        with torch.autocast(inputs[0].device.type, dtype=torch.bfloat16):
            out = forward(*inputs)
        return out.float()

    return lower


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def twice(*inputs: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        out: Tensor = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out

    return twice
