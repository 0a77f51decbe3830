"""Counts a model's parameters, and its multiply-accumulates by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.codec import Model

# The side of the square picture to count on; a convolutional model's cost per pixel hardly
# depends on it.
SIDE = 256


def count_parameters(module: nn.Module) -> int:
    """Return the number of learned parameters of `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def kmac_per_pixel(model: Model) -> tuple[float, dict[str, float]]:
    """Return thousands of multiply-accumulates per pixel of a forward pass, in all and by part.

    A forward pass is analysis, entropy model and synthesis together. Convolutions, transposed
    convolutions and linear layers are counted; parts are the model's top-level modules.
    """
    device = next(model.parameters()).device
    with torch.inference_mode(), counted(model) as macs:
        model(torch.full((1, 3, SIDE, SIDE), 0.5, device=device))
    parts: dict[str, float] = {}
    for name, count in macs.items():
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0.0) + count / (SIDE * SIDE * 1000)
    return sum(parts.values()), parts


@contextmanager
def counted(module: nn.Module) -> Iterator[dict[str, int]]:
    """Yield a table, by layer name, of the multiply-accumulates done inside the block."""
    macs: dict[str, int] = {}
    handles = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            handles.append(layer.register_forward_hook(_counter(name, macs)))
    try:
        yield macs
    finally:
        for handle in handles:
            handle.remove()


def _counter(name: str, macs: dict[str, int]) -> Any:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs[name] = macs.get(name, 0) + layer_macs(layer, inputs[0], output)

    return hook


def layer_macs(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    """Return the multiply-accumulates of one call of a convolution or linear layer."""
    if isinstance(layer, nn.Linear):
        return output.numel() * layer.in_features
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    if isinstance(layer, nn.ConvTranspose2d):
        return x.numel() * layer.out_channels // layer.groups * taps
    return output.numel() * layer.in_channels // layer.groups * taps


def parts_table(model: Model) -> tuple[float, tuple[dict[str, Any], ...]]:
    """Return the total kMAC per pixel and, for each top-level module, its parameters and kMAC."""
    total, macs = kmac_per_pixel(model)
    rows = [
        {"part": name, "parameters": count_parameters(child), "kmac_per_pixel": macs.get(name, 0.0)}
        for name, child in model.named_children()
        if count_parameters(child)
    ]
    return total, tuple(rows)
