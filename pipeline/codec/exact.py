"""Networks that give the same numbers, bit by bit, on any device and with any thread count.

What the entropy decoder is steered by must come out equal in encoder and decoder, but floating
point sums depend on their order, hence on threads, batch sizes, libraries and devices. Here
every sum is exact, so that it has no order: inputs of a layer are rounded to a fixed-point grid
of 2^-12 and held below 2^12 (25 bits with the sign), weights to a power-of-two grid of the
layer's own, fine enough for all products and sums to be integers below 2^53, which float64
holds exactly. What is not a sum works on one number at a time with operations that IEEE 754
defines to the last bit (+, -, *, /, sqrt, rounding), or looks it up in a table (GELU, tanh).

The structure is the float model's: `exact_copy` replaces its layers, not its code.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.errors import CodecError
from pipeline.codec.layers import ChannelNorm, GlobalMean

_GRID = 2.0**12
_LIMIT = 2.0**12 - 1 / _GRID
# Sums of |weight| (in units of the layer's grid) stay below 2^28, those of products below 2^52.
_WEIGHT_SUM = 2.0**28
# Squares are summed on a coarser grid: 2 * (12 + 8) bits and 2^13 channels make 53.
_COARSE = 2.0**8
_TABLE_END = 8
_TABLE_GRID = 2.0**20


def exact_copy(module: nn.Module) -> Any:
    """Return a float64 copy of `module`, where it is, whose results don't depend on sums' order.

    Knows convolutions, transposed convolutions, `ChannelNorm`, `GlobalMean`, GELU and tanh.
    Raises `CodecError` when a weight is not finite.
    """
    device = next(module.parameters()).device
    # Made on the CPU: the grids of weights come from sums in floating point.
    module = copy.deepcopy(module).cpu().double().requires_grad_(False).eval()
    if any(not tensor.isfinite().all() for tensor in module.state_dict().values()):
        raise CodecError("the model has weights that are not finite numbers; it can't be used")
    _replace(module)
    return module.to(device)


def snap(x: Tensor) -> Tensor:
    """Round x to the grid and hold it within its limits; float64."""
    return (x * _GRID).round_().mul_(1 / _GRID).clamp_(-_LIMIT, _LIMIT)


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, _ExactConv(child))
        elif isinstance(child, nn.ConvTranspose2d):
            setattr(module, name, _ExactDeconv(child))
        elif isinstance(child, ChannelNorm):
            setattr(module, name, _ExactNorm(child))
        elif isinstance(child, GlobalMean):
            setattr(module, name, _ExactMean())
        elif isinstance(child, nn.GELU):
            setattr(module, name, _Table(_gelu, _same))
        elif isinstance(child, nn.Tanh):
            setattr(module, name, _Table(math.tanh, torch.ones_like))
        else:
            _replace(child)


def _snap_weight(weight: Tensor, output_dim: int) -> Tensor:
    """Round to the finest power-of-two grid on which the layer's sums stay exact."""
    largest = weight.abs().movedim(output_dim, 0).flatten(1).sum(1).max().item()
    exponent = math.floor(math.log2(_WEIGHT_SUM / largest)) - 1 if largest > 0 else 0
    grid = 2.0 ** min(exponent, 40)
    return (weight * grid).round() / grid


class _ExactConv(nn.Module):
    """A convolution of stride 1: as matrix product, or tap by tap when it is depthwise."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.kernel = layer.kernel_size[0]
        self.depthwise = layer.groups > 1
        self.register_buffer("weight", _snap_weight(layer.weight, 0))
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H, W), float64."""
        x = snap(x)
        if self.depthwise:
            return self._by_taps(x)
        n, _, h, w = x.shape
        columns = x.flatten(2) if self.kernel == 1 else self._columns(x)
        out = torch.matmul(self.weight.flatten(1), columns)
        out += self.bias.view(-1, 1)
        return out.reshape(n, -1, h, w)

    def _columns(self, x: Tensor) -> Tensor:
        return F.unfold(x, self.kernel, padding=self.kernel // 2)

    def _by_taps(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        half = self.kernel // 2
        padded = F.pad(x, (half, half, half, half))
        out = torch.zeros_like(x)
        for i in range(self.kernel):
            for j in range(self.kernel):
                tap = self.weight[:, 0, i, j].view(-1, 1, 1)
                out += padded[:, :, i : i + h, j : j + w] * tap
        out += self.bias.view(-1, 1, 1)
        return out


class _ExactDeconv(nn.Module):
    """A transposed convolution: a matrix product whose columns are added up in place."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.kernel, self.stride = layer.kernel_size[0], layer.stride[0]
        self.register_buffer("weight", _snap_weight(layer.weight, 1))
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, stride H, stride W), float64."""
        h, w = x.shape[2:]
        columns = torch.matmul(self.weight.flatten(1).t(), snap(x).flatten(2))
        size = (h * self.stride, w * self.stride)
        out = F.fold(columns, size, self.kernel, padding=self.kernel // 2, stride=self.stride)
        return out.add_(self.bias.view(-1, 1, 1))


class _ExactNorm(nn.Module):
    """Layer normalisation over channels, its two sums on grids on which they are exact."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: ChannelNorm) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.view(-1, 1, 1))
        self.register_buffer("bias", layer.bias.view(-1, 1, 1))
        self.eps = layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W), float64."""
        x = snap(x)
        count = _number(x.shape[1], x)
        coarse = (x * _COARSE).round_().mul_(1 / _COARSE)
        mean = x.sum(1, keepdim=True) / count
        coarse_mean = coarse.sum(1, keepdim=True) / count
        squares = coarse.square_().sum(1, keepdim=True) / count
        variance = (squares - coarse_mean * coarse_mean).clamp_(min=0)
        normal = (x - mean) / (variance + self.eps).sqrt()
        return (normal * self.weight).add_(self.bias)


class _ExactMean(nn.Module):
    """The mean over all positions, of numbers on the grid."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, 1, 1) of (N, C, H, W), float64."""
        return snap(x).sum((2, 3), keepdim=True) / _number(x.shape[2] * x.shape[3], x)


def _number(value: int, like: Tensor) -> Tensor:
    """Return `value` where `like` is: CUDA divides by a plain number as times its reciprocal."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


class _Table(nn.Module):
    """A function of one number, looked up on the grid from -8 to 8.

    Above it is `above`(x), below 0 for GELU and -1 for tanh: what the table ends with.
    """

    table: Tensor

    def __init__(
        self, function: Callable[[float], float], above: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.register_buffer("table", _tabulate(function))
        self.above = above

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to float64 numbers of any shape."""
        x = snap(x)
        last = self.table.numel() - 1
        index = ((x + _TABLE_END) * _GRID).clamp_(0, last).to(torch.int64)
        return torch.where(x >= _TABLE_END, self.above(x), self.table[index])


@cache
def _tabulate(function: Callable[[float], float]) -> Tensor:
    ends = round(_TABLE_END * _GRID)
    table = torch.tensor([function(i / _GRID) for i in range(-ends, ends)], dtype=torch.float64)
    return (table * _TABLE_GRID).round() / _TABLE_GRID


def _same(x: Tensor) -> Tensor:
    return x


def _gelu(x: float) -> float:
    return 0.5 * x * math.erfc(-x * math.sqrt(0.5))
