"""The costly parts as CUDA graphs: their kernels are launched by the device, not one by one.

A training step at the published size is some 15,000 kernels; with eight crops, launching them takes
longer than running them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recipes.losses import weights_at
from recipes.module import TrainingModule
from recipes.noise import draw_noise, draw_rates
from recipes.speed import costly_parts


def capture(module: TrainingModule, pictures: int) -> None:
    """Make training passes over `pictures` crops replay the parts' graphs; others stay as they are.

    The graphs read the parameters where they are now: these may change, but not move. Gradients are
    written to the same memory at each pass, so they must be used before the next one.
    """
    device = next(module.parameters()).device
    inputs = _inputs(module, pictures, device)
    # One call, in the order of use: so the graphs can share their memory.
    torch.cuda.make_graphed_callables(
        tuple(inputs), tuple(inputs.values()), allow_unused_input=True
    )
    torch.cuda.empty_cache()


def _inputs(
    module: TrainingModule, pictures: int, device: torch.device
) -> dict[nn.Module, tuple[Tensor, ...]]:
    """Return each part with inputs of the kinds it is called with, in the order of calls."""
    run, config, found = module.run, module.model.config, {}

    def record(part: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[part] = tuple(_like(arg) for arg in args)

    crop, addresses = run.stage.crop, range(pictures)
    layout = torch.channels_last if run.recipe.speed.channels_last else torch.contiguous_format
    x = torch.zeros(pictures, 3, crop, crop, device=device).contiguous(memory_format=layout)
    rates = draw_rates(config, addresses, device)
    with _watching(module, record):
        module(x, draw_noise(config, crop, addresses, device), weights_at(0, run, rates), rates)
    return found


@contextmanager
def _watching(module: TrainingModule, record: Callable[..., None]) -> Iterator[None]:
    hooks = [part.register_forward_pre_hook(record) for part in costly_parts(module)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _like(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
