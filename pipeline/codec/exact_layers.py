"""Layers with exact sums, whose order does not matter: `exact_copy` puts them in place of others.

Inputs of a layer are rounded to a fixed-point grid of 2^-12 and clamped below 2^12 (25 bits with
the sign). Weights are rounded to a power-of-two grid of the layer's own: the finest on which all
products and sums are integers below 2^53, which float64 holds exactly. A bias is added in one
operation.

Shapes: N batch, C channels, H x W positions; sums are float64 (`pipeline.codec.scaled_layers` has
the layers that add up in float32).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.errors import CodecError

_GRID = 2.0**12
_LIMIT = 2.0**12 - 1 / _GRID
# Sums of |weight| (in units of the layer's grid) stay below 2^28, those of products below 2^52.
_WEIGHT_SUM = 2.0**28
# Squares are summed on a coarser grid: 2 * (12 + 8) bits and 2^13 channels make 53.
_COARSE = 2.0**8
_TABLE_GRID = 2.0**20
# Bytes of sums that a processor's L2 cache holds together with as many bytes of inputs.
_CACHED = 2**19

# State of this thread: `layer` is set while a layer runs, `double` by `arithmetic.in_float64`.
local = threading.local()


class ExactLayer(nn.Module):
    """A layer whose results are exact, whatever operations it uses."""

    def __call__(self, *inputs: Any) -> Any:
        """Call `forward`; `inside_layer` is true while it runs."""
        before = inside_layer()
        local.layer = True
        try:
            return super().__call__(*inputs)
        finally:
            local.layer = before


def inside_layer() -> bool:
    """Tell whether this thread is in an `ExactLayer`, whose operations are not checked."""
    return getattr(local, "layer", False)


def snap(x: Tensor) -> Tensor:
    """Round x to the grid and clamp it to the grid's limits, in its own precision."""
    return (x * _GRID).round_().mul_(1 / _GRID).clamp_(-_LIMIT, _LIMIT)


def snap_weight(weight: Tensor) -> Tensor:
    """Round (O, ...) to the finest power-of-two grid on which the sums of O outputs stay exact."""
    largest = weight.abs().flatten(1).sum(1).max().item() if weight.numel() else 0.0
    exponent = math.floor(math.log2(_WEIGHT_SUM / largest)) - 1 if largest > 0 else 0
    grid = 2.0 ** min(exponent, 40)
    return (weight * grid).round() / grid


class ExactConv(ExactLayer):
    """A convolution: by matrix products, or tap by tap if it is depthwise."""

    # (O, C / groups, k, k), or (k, k, O, C) for `_by_shifts`.
    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, weight: Tensor | None = None) -> None:
        """Take `weight` (O, C / groups, k, k), if given, in place of the layer's own."""
        super().__init__()
        snapped = snap_weight(layer.weight if weight is None else weight)
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.groups = layer.groups
        self.depthwise = layer.groups == layer.in_channels == layer.out_channels
        self.shifts = not self.depthwise and self.groups == 1 and self.stride == (1, 1)
        if self.shifts:
            snapped = snapped.permute(2, 3, 0, 1).contiguous()
        self.register_buffer("weight", snapped)
        self.register_buffer("bias", layer.bias)
        self.padding = padding_of(layer)
        self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W')."""
        x = snap(x.double())
        if any(self.padding):
            x = F.pad(x, self.padding, self.mode)
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        h, w = (
            (x.shape[2] - dh * (kh - 1) - 1) // sh + 1,
            (x.shape[3] - dw * (kw - 1) - 1) // sw + 1,
        )
        if self.depthwise:
            out = self._by_taps(x, h, w)
        elif self.shifts:
            out = self._by_shifts(x, h, w)
        else:
            out = self._by_columns(x, h, w)
        return out if self.bias is None else out.add_(self.bias.view(-1, 1, 1))

    def _by_shifts(self, x: Tensor, h: int, w: int) -> Tensor:
        """For each tap, add a matrix product with the shifted picture, without copying it.

        Rows of the sums are as long as those of the padded picture; their ends are cut off.
        """
        (kh, kw), (dh, dw), width = self.kernel, self.dilation, x.shape[3]
        out = x.new_empty(len(x), self.weight.shape[2], h * width)
        length = (h - 1) * width + w
        for source, target in zip(x.flatten(2), out[:, :, :length], strict=True):
            for i in range(kh):
                for j in range(kw):
                    start, added = i * dh * width + j * dw, int(i + j > 0)
                    shifted = source[:, start : start + length]
                    torch.addmm(target, self.weight[i, j], shifted, beta=added, out=target)
        return out.view(len(x), -1, h, width)[..., :w]

    def _by_columns(self, x: Tensor, h: int, w: int) -> Tensor:
        """Multiply the weights by a matrix of the inputs of each output (im2col)."""
        columns = F.unfold(x, self.kernel, self.dilation, stride=self.stride)
        if self.groups == 1:
            out = torch.matmul(self.weight.flatten(1), columns)
        else:
            grouped = columns.reshape(len(x), self.groups, -1, h * w)
            out = torch.matmul(self.weight.reshape(self.groups, -1, grouped.shape[2]), grouped)
        return out.reshape(len(x), -1, h, w)

    def _by_taps(self, x: Tensor, h: int, w: int) -> Tensor:
        """Add up products of single numbers; see `taps_added`."""
        return taps_added(x, self.weight, self.stride, self.dilation, h, w)


def taps_added(
    x: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...], h: int, w: int
) -> Tensor:
    """Return a depthwise convolution (n, c, h, w) of the padded `x` by `weight` (c, 1, kh, kw).

    Products of single numbers are added up tap by tap, in the dtype of `x`, for as many channels at
    a time as a processor's cache holds.
    """
    (kh, kw), (sh, sw), (dh, dw) = weight.shape[2:], stride, dilation
    out = x.new_zeros(len(x), x.shape[1], h, w)
    channels = max(1, _CACHED // x.element_size() // max(1, len(x) * h * w))
    for inputs, sums, weights in zip(
        torch.split(x, channels, 1),
        torch.split(out, channels, 1),
        torch.split(weight, channels),
        strict=True,
    ):
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (h - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (w - 1) * sw + 1, sw)
                sums.addcmul_(inputs[:, :, rows, columns], weights[:, 0, i, j].view(-1, 1, 1))
    return out


def padding_of(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return the padding of a convolution: left, right, above and below."""
    if layer.padding == "valid":
        return 0, 0, 0, 0
    sides: list[tuple[int, int]] = []
    for axis in (1, 0):
        if isinstance(layer.padding, str):
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sides.append((total // 2, total - total // 2))
        else:
            sides.append((layer.padding[axis], layer.padding[axis]))
    return (*sides[0], *sides[1])


class ExactDeconv(ExactLayer):
    """A transposed convolution: a matrix product whose columns are added in place (col2im)."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        super().__init__()
        if not all(o < s for o, s in zip(layer.output_padding, layer.stride, strict=True)):
            raise CodecError("an output_padding that isn't below its stride has no exact form")
        inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        # (groups, C / groups, O / groups, k, k), with outputs first for `snap_weight`.
        split = layer.weight.reshape(layer.groups, inputs, outputs, *layer.kernel_size)
        snapped = snap_weight(split.transpose(1, 2).flatten(0, 1))
        snapped = snapped.reshape(layer.groups, outputs, inputs, *layer.kernel_size)
        # One matrix per group, (O / groups * k * k, C / groups).
        self.register_buffer("weight", snapped.permute(0, 1, 3, 4, 2).flatten(1, 3).contiguous())
        self.register_buffer("bias", layer.bias)
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        assert not isinstance(layer.padding, str)
        self.padding, self.extra = layer.padding, layer.output_padding

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W')."""
        n, h, w = x.shape[0], x.shape[2], x.shape[3]
        inputs = snap(x.double()).reshape(n, len(self.weight), -1, h * w)
        columns = torch.matmul(self.weight, inputs).flatten(1, 2)
        size = tuple(
            (side - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
            for side, stride, padding, dilation, kernel, extra in zip(
                (h, w), self.stride, self.padding, self.dilation, self.kernel, self.extra,
                strict=True,
            )
        )  # fmt: skip
        out = F.fold(columns, size, self.kernel, self.dilation, self.padding, self.stride)
        return out if self.bias is None else out.add_(self.bias.view(-1, 1, 1))


class ExactLinear(ExactLayer):
    """A linear layer over the last dimension."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", snap_weight(layer.weight))
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., O)."""
        out = torch.matmul(snap(x.double()), self.weight.t())
        return out if self.bias is None else out.add_(self.bias)


class ExactNorm(ExactLayer):
    """Layer normalisation over channels; both sums are on grids on which they are exact."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.view(-1, 1, 1))
        self.register_buffer("bias", layer.bias.view(-1, 1, 1))
        self.eps = layer.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        x = snap(x.double())
        count = number_like(x.shape[1], x)
        coarse = (x * _COARSE).round_().mul_(1 / _COARSE)
        mean = x.sum(1, keepdim=True) / count
        coarse_mean = coarse.sum(1, keepdim=True) / count
        squares = coarse.square_().sum(1, keepdim=True) / count
        variance = (squares - coarse_mean * coarse_mean).clamp_(min=0)
        normal: Tensor = (x - mean) / (variance + self.eps).sqrt()
        return (normal * self.weight).add_(self.bias)


class ExactMean(ExactLayer):
    """The mean over all positions, of numbers rounded to the grid."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, 1, 1) of (N, C, H, W)."""
        sums = snap(x).sum((2, 3), keepdim=True, dtype=torch.float64)
        return (sums / number_like(x.shape[2] * x.shape[3], sums)).to(x.dtype)


def number_like(value: int, like: Tensor) -> Tensor:
    """Return `value` as a tensor of the dtype and on the device of `like`, to divide by it.

    CUDA divides by a Python number by multiplying with its reciprocal, which rounds differently.
    """
    return torch.full((), value, dtype=like.dtype, device=like.device)


class Lookup(ExactLayer):
    """A function of one number, looked up on the grid from -`end` to `end`.

    From `end` up its value is `above` (None: x itself), below -`end` the first of the table.
    """

    table: Tensor

    def __init__(
        self, function: Callable[[float], float], above: float | None, end: int = 8
    ) -> None:
        super().__init__()
        self.register_buffer("table", _tabulate(function, end))
        self.function, self.above, self.end = function, above, end

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to numbers of any shape."""
        x = snap(x)
        last = self.table.numel() - 1
        index = x.add(self.end).mul_(_GRID).clamp_(0, last).to(torch.int32)
        values = self.table.index_select(0, index.flatten()).view(x.shape)
        return torch.where(x >= self.end, x if self.above is None else self.above, values)


@cache
def _tabulate(function: Callable[[float], float], end: int) -> Tensor:
    ends = round(end * _GRID)
    table = torch.tensor([function(i / _GRID) for i in range(-ends, ends)], dtype=torch.float64)
    return (table * _TABLE_GRID).round() / _TABLE_GRID


def gelu(x: float) -> float:
    """Return the Gaussian error linear unit of x."""
    return 0.5 * x * math.erfc(-x * math.sqrt(0.5))


def gelu_tanh(x: float) -> float:
    """Return the tanh approximation of `gelu` (Hendrycks and Gimpel 2016)."""
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: float) -> float:
    """Return x times its logistic function."""
    return x * sigmoid(x)


def sigmoid(x: float) -> float:
    """Return the logistic function of x."""
    return 1 / (1 + math.exp(-x))


def tanh(x: float) -> float:
    """Return the hyperbolic tangent of x."""
    return math.tanh(x)
