"""Two networks of one structure as one: each layer takes both inputs as a batch of two.

The means and the scales of latents are predicted by networks that differ in weights alone. On small
pictures most of their time goes into calling operations, not into what these compute; run as one,
they call half as many. Every number is computed as by the network alone, to the last bit.
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

    None: they are no exact copies in float32, or differ in more than weights and units.
    """
    if type(first) is not type(second):
        return None
    if type(first) in _KINDS:
        return _pair(first, second)
    if isinstance(first, _SHARED) and _alike(first, second):
        return first
    if isinstance(first, ExactLayer) or not _parts_alike(first, second):
        return None
    made = copy.copy(first)
    made._modules = {}
    for name, part in first._modules.items():
        other = second._modules[name]
        both = None if part is None or other is None else paired(part, other)
        if both is None:
            return None
        made._modules[name] = both
    made._parameters = _stacked(first._parameters, second._parameters)
    made._buffers = _stacked(first._buffers, second._buffers)
    return made


def _parts_alike(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two modules have the same parts and settings, and numbers (1, C, 1, 1)."""
    if first._modules.keys() != second._modules.keys() or _settings(first) != _settings(second):
        return False
    own, theirs = _numbers(first), _numbers(second)
    shapes = {name: value.shape for name, value in theirs.items()}
    if own and type(first).__module__.startswith("torch."):
        return False
    return {name: value.shape for name, value in own.items()} == shapes and all(
        value.ndim == 4 and len(value) == 1 for value in own.values()
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _numbers(module: nn.Module) -> dict[str, Tensor]:
    found = {**module._parameters, **module._buffers}
    return {name: value for name, value in found.items() if value is not None}


def _stacked(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return what multiplies pictures (1, C, 1, 1) as that of a batch of two."""
    return {name: torch.cat([value, second[name]]) for name, value in first.items()}


class _Pair(ExactLayer):
    """Two layers with products, their outputs finished together."""

    bias: Tensor | None
    unit: Tensor

    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second, self.largest = first, second, first.largest
        self.register_buffer("unit", _both(first, second, "unit"))
        bias = None if first.bias is None else torch.stack([first.bias, second.bias])
        self.register_buffer("bias", None if bias is None else bias[:, None, None])


class PairedConv(_Pair):
    """Two convolutions of all channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (2, C, H, W) to (2, O, H', W'), float32."""
        conv: ScaledConv = self.first
        x = whole_picture(x, self.unit, self.largest, conv.padding, conv.mode)
        sums = conv.room(x)
        for layer, one, out in zip((conv, self.second), x.chunk(2), sums.chunk(2), strict=True):
            layer.add_up(one, out)
        return conv.outputs_of(x, sums, self.bias)


class PairedTaps(_Pair):
    """Two depthwise convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (2, C, H, W) to the same number of channels, float32."""
        conv: ScaledTaps = self.first
        x = conv.whole(x, self.unit)
        layers = zip((conv, self.second), x.chunk(2), strict=True)
        return finished(torch.cat([layer.add_up(one) for layer, one in layers]), self.bias)


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
    """Return a number of each of two layers, (2, 1, 1, 1), where the first one is."""
    numbers = [getattr(first, name), getattr(second, name)]
    return torch.tensor(numbers, device=first.weight.device).view(2, 1, 1, 1)


def _alike(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two layers have the same buffers."""
    theirs = dict(second.named_buffers())
    return all(torch.equal(value, theirs[name]) for name, value in first.named_buffers())


def _pair(first: Any, second: Any) -> nn.Module | None:
    """Return the layer of two that take a scale; None if they differ in more than its unit."""
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
# What has nothing of its own: a table of a function, or a mean.
_SHARED = (ScaledLookup, OrderedMean)
