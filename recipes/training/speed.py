"""The same arithmetic, done faster: bf16, torch.compile, recomputed activations.

All three are applied to the parts that cost: transforms, hyper-transforms, supports and heads. What
lies between them stays as it is: means, scales, rounding, entropy models and the loss in float32.
Without gradients the parts compute as the codec does, in float32 and uncompiled, so that what is
measured on held-out pictures is what a file will have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.codec import CCAModel
from recipes.config.settings import Speed
from recipes.training.module import TrainingModule

_MOST_GRAPHS = 256


def apply(module: TrainingModule, speed: Speed) -> None:
    """Change how the costly parts of `module` are computed; parameters stay what they are."""
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
    """Yield the sequences of blocks, in which most small operations are.

    There are seven kinds, so seven graphs to compile: the supports, all of one shape, share theirs.
    """
    yield from (*module.model.analysis.blocks, *module.model.synthesis.blocks)
    for context in _contexts(module):
        for support in (*context.mean_supports, *context.scale_supports):
            yield support.blocks


def _contexts(module: TrainingModule) -> list[Any]:
    auxiliary = [] if module.auxiliary is None else [module.auxiliary.context]
    return [module.model.context, *auxiliary]


def costly_parts(module: TrainingModule) -> Iterator[nn.Module]:
    """Yield the modules in which nearly all of the arithmetic is done; each is called whole."""
    model: CCAModel = module.model
    yield from (model.analysis, model.synthesis, model.hyper_analysis)
    yield from (model.hyper_mean, model.hyper_scale)
    for context in _contexts(module):
        yield from context.mean_supports
        yield from context.scale_supports
        yield from context.mean_heads
        yield from context.scale_heads
        yield from context.residual_heads


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
        # checkpoint() returns Any.
        out: Any = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out  # type: ignore[no-any-return]

    return twice
