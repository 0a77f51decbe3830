"""Runs two networks of the same structure as one: each layer takes a batch of both inputs.

The means and the scales of latents are predicted by networks that differ only in their weights. On
small pictures most of the time goes into calling operations, not into computing; run as one, the
networks call half as many. The results are those of each network alone, to the last bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.codec.exact_layers import ExactLayer
from pipeline.codec.scaled_layers import (
    OrderedMean,
    ScaledConv,
    ScaledLookup,
    ScaledNorm,
    ScaledTaps,
    finished,
)
from pipeline.codec.whole_numbers import whole_picture


def paired(first: nn.Module, second: nn.Module) -> nn.Module | None:
    """Return a module that maps (2, C, H, W): the first picture by `first`, the other by `second`.

    Returns None unless both are exact copies in float32 that differ only in weights and units.
    """
    if type(first) is not type(second):
        return None
    if type(first) in _KINDS:
        return _pair(first, second)
    if isinstance(first, _SHARED) and _alike(first, second):
        return first
    if isinstance(first, ExactLayer) or not _parts_alike(first, second):
        return None
    module = copy.copy(first)
    module._modules = {}
    for name, part in first._modules.items():
        other = second._modules[name]
        both = None if part is None or other is None else paired(part, other)
        if both is None:
            return None
        module._modules[name] = both
    module._parameters = _stacked(first._parameters, second._parameters)
    module._buffers = _stacked(first._buffers, second._buffers)
    return module


def _parts_alike(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two modules have the same parts, settings and shapes of tensors (1, C, 1, 1)."""
    if first._modules.keys() != second._modules.keys() or _settings(first) != _settings(second):
        return False
    own, theirs = _tensors(first), _tensors(second)
    shapes = {name: value.shape for name, value in theirs.items()}
    if own and type(first).__module__.startswith("torch."):
        return False
    return {name: value.shape for name, value in own.items()} == shapes and all(
        value.ndim == 4 and len(value) == 1 for value in own.values()
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    tensors = {**module._parameters, **module._buffers}
    return {name: value for name, value in tensors.items() if value is not None}


def _stacked(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Join the tensors (1, C, 1, 1) of two modules to tensors (2, C, 1, 1)."""
    return {name: torch.cat([value, second[name]]) for name, value in first.items()}


class _Pair(ExactLayer):
    """Two layers with products, whose outputs get their biases together."""

    bias: Tensor | None
    unit: Tensor

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second, self.largest = first, second, first.largest
        self.register_buffer("unit", _both(first, second, "unit"))
        bias = None if first.bias is None else torch.stack([first.bias, second.bias])
        self.register_buffer("bias", None if bias is None else bias[:, None, None])


class PairedConv(_Pair):
    """Two dense convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (2, C, H, W) to (2, O, H', W'), float32."""
        conv: ScaledConv = self.first
        x = whole_picture(x, self.unit, self.largest, conv.padding, conv.mode)
        sums = conv.room(x)
        for layer, part, out in zip((conv, self.second), x.chunk(2), sums.chunk(2), strict=True):
            layer.add_up(part, out)
        return conv.outputs_of(x, sums, self.bias)


class PairedTaps(_Pair):
    """Two depthwise convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (2, C, H, W) to the same number of channels, float32."""
        conv: ScaledTaps = self.first
        x = conv.whole(x, self.unit)
        layers = zip((conv, self.second), x.chunk(2), strict=True)
        return finished(torch.cat([layer.add_up(part) for layer, part in layers]), self.bias)


class PairedNorm(ScaledNorm):
    """Two normalisations over channels."""

    def __init__(self, first: ScaledNorm, second: ScaledNorm) -> None:
        ExactLayer.__init__(self)
        self.largest, self.eps = first.largest, first.eps
        self.register_buffer("unit", _both(first, second, "unit"))
        self.register_buffer("step", _both(first, second, "step").double())
        for name in ("weight", "bias"):
            both = torch.stack([getattr(first, name), getattr(second, name)])
            self.register_buffer(name, both[:, None, None])


def _both(first: Any, second: Any, name: str) -> Tensor:
    """Return the number `name` of both layers as (2, 1, 1, 1), on the first layer's device."""
    numbers = [getattr(first, name), getattr(second, name)]
    return torch.tensor(numbers, device=first.weight.device).view(2, 1, 1, 1)


def _alike(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two layers have the same buffers."""
    theirs = dict(second.named_buffers())
    return all(torch.equal(value, theirs[name]) for name, value in first.named_buffers())


def _pair(first: Any, second: Any) -> nn.Module | None:
    """Pair two layers with scales; return None if more than weights and units differ."""
    same = ("largest", "products", "kernel", "stride", "dilation", "padding", "mode", "eps")
    if any(getattr(first, name, None) != getattr(second, name, None) for name in same):
        return None
    if (getattr(first, "bias", None) is None) != (getattr(second, "bias", None) is None):
        return None
    return _KINDS[type(first)](first, second)


_KINDS: dict[type[nn.Module], Callable[[Any, Any], nn.Module]] = {
    ScaledConv: PairedConv,
    ScaledTaps: PairedTaps,
    ScaledNorm: PairedNorm,
}
# Layers without weights: the table of a function, or a mean.
_SHARED = (ScaledLookup, OrderedMean)
