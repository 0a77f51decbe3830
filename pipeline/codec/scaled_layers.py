"""Layers with exact sums in float32: the second form of `pipeline.codec.exact_layers`.

Inputs are rounded to whole numbers and weights to whole numbers times a power of two, as
`pipeline.codec.scales` describes, so that each block of a sum is exact in any order, in float32 as
in float64, in torch as in numpy. The blocks are added up in float32 in the order of their inputs,
then the bias is added. So any library and device gives the same bits.

Pictures are in channels-last memory: the inputs of a product are the rows of a matrix of positions.
Shapes: N batch, C channels, O outputs, H x W positions. A "whole" picture has whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.arithmetic import direct_convolutions, in_float32
from pipeline.codec.exact_layers import ExactLayer, Lookup, number_like, padding_of
from pipeline.codec.scales import (
    BLOCK,
    LARGEST_SUM,
    TABLE_STEPS,
    Scale,
    blocks_of,
    scaled_weights,
    tabulated,
)
from pipeline.codec.whole_numbers import NO_PADDING, Unit, scratch, whole_inputs, whole_picture

# A block of products: inputs (P, K) and weights (K, O), one pair per tap.
Block = Sequence[tuple[Tensor, Tensor]]


def scale_of(layer: nn.Module) -> Scale | None:
    """Return the scale of a layer; None if it has none."""
    scale: Scale | None = getattr(layer, "exact_scale", None)
    return scale


def give_scale(layer: nn.Module, scale: Scale | None) -> None:
    """Set the scale of a layer; None removes it."""
    if scale is not None:
        # nn.Module types attributes as tensors and modules only; this is neither.
        layer.exact_scale = scale  # type: ignore[assignment]
    elif scale_of(layer) is not None:
        del layer.exact_scale


class _Scaled(ExactLayer):
    """A layer of products: a matrix (K, O) of weights, and a bias (O,)."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any, by_output: Tensor, products: Sequence[Sequence[slice]]) -> None:
        """`by_output` has the weights (O, K).

        `products` has, for each block that is added up exactly, the adjacent parts of K that make
        it up: one part for each matrix product.
        """
        super().__init__()
        scale = scale_of(layer)
        assert scale is not None
        self.unit, self.largest, self.products = scale.unit, scale.largest, products
        blocks = [slice(block[0].start, block[-1].stop) for block in products]
        scaled = torch.from_numpy(scaled_weights(by_output.numpy(), blocks, scale))
        self.register_buffer("weight", scaled.t().contiguous())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.float())
        self._split: tuple[Tensor, list[list[Tensor]]] | None = None

    def weights(self) -> list[list[Tensor]]:
        """Return the weights of each product, by blocks: views, made once for each device."""
        weight, split = self.weight, self._split
        if split is None or split[0] is not weight:
            parts = [[weight[part] for part in block] for block in self.products]
            self._split = split = (weight, parts)
        return split[1]

    def added(self, inputs: Sequence[Tensor], out: Tensor) -> None:
        """Write the sum of all products into `out` (P, O); `inputs` has a (P, K) for each."""
        rest = iter(inputs)
        added([[(next(rest), weight) for weight in block] for block in self.weights()], out)


class ScaledConv(_Scaled):
    """A dense convolution: for each tap, a product with the shifted picture."""

    def __init__(self, layer: nn.Conv2d, weight: Tensor | None = None) -> None:
        """Take `weight` (O, C, k, k), if given, in place of the layer's own."""
        weight = layer.weight if weight is None else weight
        channels, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.outputs = len(weight)
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        self.taps = [(i * dh, j * dw) for i in range(kh) for j in range(kw)]
        # Blocks of (tap, channels): several taps where they fit into one block.
        step = max(1, BLOCK // channels)
        blocks = [
            [(tap, part) for tap in range(first, min(first + step, taps))]
            for first in range(0, taps, step)
            for part in blocks_of(channels)
        ]
        # The inputs of each product: the tap, the first channel, the number of channels.
        self.inputs = [
            (tap, part.start, part.stop - part.start) for block in blocks for tap, part in block
        ]
        products = [
            [slice(tap * channels + part.start, tap * channels + part.stop) for tap, part in block]
            for block in blocks
        ]
        # (O, k * k * C): the inputs of a tap are adjacent.
        super().__init__(layer, weight.permute(0, 2, 3, 1).flatten(1), products)
        self.padding, self.mode = padding_of(layer), layer.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W'), float32."""
        x = whole_picture(x, self.unit, self.largest, self.padding, self.mode)
        sums = self.room(x)
        self.add_up(x, sums)
        return self.outputs_of(x, sums, self.bias)

    def room(self, x: Tensor) -> Tensor:
        """Return memory (N, H', W', O) for the sums that `add_up` makes of whole pictures x.

        H' and W' are those of the outputs, or those of x where rows stay as long as the padded
        picture's; `outputs_of` cuts off the ends of such rows.
        """
        n, above, across, _ = x.shape
        h, w = self.size_of(x)
        if self.stride == (1, 1) and (h, w) != (above, across):
            return scratch("sums", (n, above, across, self.outputs), x)
        return x.new_empty((n, h, w, self.outputs))

    def outputs_of(self, x: Tensor, sums: Tensor, bias: Tensor | None) -> Tensor:
        """Return outputs (N, O, H', W'), given the sums of whole pictures x."""
        h, w = self.size_of(x)
        whole = sums.shape[1:3] == (h, w)
        return finished(sums if whole else sums[:, :h, :w], bias, in_place=whole)

    def size_of(self, x: Tensor) -> tuple[int, int]:
        """Return H and W of the outputs for whole pictures x (N, H, W, C)."""
        return size_of(x, self.kernel, self.stride, self.dilation)

    def add_up(self, x: Tensor, out: Tensor) -> None:
        """Write the sums for whole pictures x (N, H, W, C) into `out`, memory from `room`."""
        n, above, across, channels = x.shape
        h, w = self.size_of(x)
        if self.stride == (1, 1):
            length = ((n - 1) * above + h - 1) * across + w
            start, strides = x.storage_offset(), (channels, 1)
            starts = [start + (i * across + j) * channels for i, j in self.taps]
            inputs = [
                x.as_strided((length, count), strides, starts[tap] + first)
                for tap, first, count in self.inputs
            ]
        else:
            (sh, sw), length = self.stride, n * h * w
            shifted = [
                x[:, i : i + (h - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw].reshape(
                    -1, channels
                )
                for i, j in self.taps
            ]
            inputs = [shifted[tap][:, first : first + count] for tap, first, count in self.inputs]
        self.added(inputs, out.view(-1, self.outputs)[:length])


class ScaledTaps(_Scaled):
    """A depthwise convolution: all taps of a channel make up one block."""

    def __init__(self, layer: nn.Conv2d, weight: Tensor | None = None) -> None:
        """Take `weight` (C, 1, k, k), if given, in place of the layer's own."""
        weight = layer.weight if weight is None else weight
        super().__init__(layer, weight.flatten(1), [[slice(0, weight[0].numel())]])
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.mode = padding_of(layer), layer.padding_mode
        left, right, above, below = self.padding
        self.even = left == right and above == below and self.mode == "zeros"

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same number of channels, float32."""
        return finished(self.add_up(self.whole(x, self.unit)), self.bias)

    def whole(self, x: Tensor, unit: Unit) -> Tensor:
        """Return x (N, C, H, W) as whole pictures (N, H, W, C), padded if `add_up` needs that."""
        padding = NO_PADDING if self.even and _by_onednn(x) else self.padding
        return whole_picture(x, unit, self.largest, padding, self.mode)

    def add_up(self, x: Tensor) -> Tensor:
        """Return the sums (N, H', W', C) for pictures from `whole`."""
        if not _by_onednn(x):
            return self._by_taps(x if in_float32(x) else x.double()).float()
        padding = (self.padding[2], self.padding[0]) if self.even else (0, 0)
        first, groups = x.permute(0, 3, 1, 2), self.weight.shape[1]
        taps = self.weights()[0][0].t().reshape(groups, 1, *self.kernel)
        sums = F.conv2d(first, taps, None, self.stride, padding, self.dilation, groups)
        return sums.permute(0, 2, 3, 1)

    def _by_taps(self, x: Tensor) -> Tensor:
        """Add up products of single numbers."""
        kw, (sh, sw), (dh, dw) = self.kernel[1], self.stride, self.dilation
        h, w = size_of(x, self.kernel, self.stride, self.dilation)
        out = x.new_zeros(len(x), h, w, x.shape[3])
        for number, weight in enumerate(self.weight.to(x.dtype)):
            i, j = number // kw * dh, number % kw * dw
            part = x[:, i : i + (h - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw]
            # The whole sum is exact, so it does not matter whether this rounds once or twice.
            out.addcmul_(part, weight)
        return out


class ScaledDeconv(_Scaled):
    """A transposed convolution: one product for all taps, then each is added to its positions."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        inputs = layer.in_channels
        # The outputs of a tap are adjacent: (k * k * O, C).
        by_output = layer.weight.permute(2, 3, 1, 0).reshape(-1, inputs)
        self.places = blocks_of(inputs)
        super().__init__(layer, by_output, [[part] for part in self.places])
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        assert not isinstance(layer.padding, str)
        self.pads, self.extra = layer.padding, layer.output_padding

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W'), float32."""
        x = whole_picture(x, self.unit, self.largest)
        n, h, w, inputs = x.shape
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        # Without padding, and with the extra rows and columns of output_padding at the end.
        size = (
            (h - 1) * sh + dh * (kh - 1) + 1 + self.extra[0],
            (w - 1) * sw + dw * (kw - 1) + 1 + self.extra[1],
        )
        columns = scratch("sums", (n * h * w, self.weight.shape[1]), x)
        rows = x.view(-1, inputs)
        self.added([rows[:, part] for part in self.places], columns)
        out = x.new_zeros(n, *size, columns.shape[1] // (kh * kw))
        parts = columns.view(n, h, w, kh, kw, -1).permute(0, 1, 3, 2, 4, 5)
        # Taps that a stride keeps apart are added at once: each adds to other numbers.
        down, right = (sh if dh == 1 else 1), (sw if dw == 1 else 1)
        for i in range(0, kh, down):
            for j in range(0, kw, right):
                part = parts[:, :, i : i + down, :, j : j + right]
                # In this order on every device, because each addition rounds.
                _spread(out[:, i * dh :, j * dw :], part.shape, self.stride).add_(part)
        top, left = self.pads
        out = out[:, top : size[0] - top, left : size[1] - left]
        return finished(out, self.bias, in_place=not any(self.pads))


class ScaledLinear(_Scaled):
    """A linear layer over the last dimension."""

    def __init__(self, layer: nn.Linear) -> None:
        self.places = blocks_of(layer.in_features)
        super().__init__(layer, layer.weight, [[part] for part in self.places])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., O), float32."""
        rows = whole_inputs(x, self.unit, self.largest).view(-1, x.shape[-1])
        sums = x.new_empty(len(rows), self.weight.shape[1], dtype=torch.float32)
        self.added([rows[:, part] for part in self.places], sums)
        return (sums if self.bias is None else sums.add_(self.bias)).view(*x.shape[:-1], -1)


class ScaledNorm(ExactLayer):
    """Layer normalisation over channels; both sums are sums of whole numbers."""

    # (C,), or one for each of a batch (N, 1, 1, C).
    weight: Tensor
    bias: Tensor
    # The largest input, 2^exponent, and 2^-exponent.
    largest: int
    unit: Unit
    step: Unit

    def __init__(self, layer: Any) -> None:
        scale = scale_of(layer)
        assert scale is not None
        super().__init__()
        self.unit, self.step, self.largest = scale.unit, 1 / scale.unit, scale.largest
        self.eps = layer.eps
        self.register_buffer("weight", layer.weight.float())
        self.register_buffer("bias", layer.bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); float32."""
        last = x.float().permute(0, 2, 3, 1)
        whole, channels = whole_inputs(last, self.unit, self.largest), last.shape[3]
        # Exact in float32 if even the largest inputs stay within the bound.
        fits = channels * self.largest**2 <= LARGEST_SUM
        dtype = torch.float32 if fits else torch.float64
        count = number_like(channels, whole).double()
        mean = whole.sum(3, keepdim=True, dtype=dtype).double().div_(count)
        squares = (whole.square_() if fits else whole.double().square_()).sum(3, keepdim=True)
        variance = squares.double().div_(count).sub_(mean.square()).clamp_(min=0)
        divisor = variance.mul_(self.step).mul_(self.step).add_(self.eps).sqrt_().float()
        normal = last.sub(mean.mul_(self.step).float()).div_(divisor)
        return normal.mul_(self.weight).add_(self.bias).permute(0, 3, 1, 2)


class OrderedMean(ExactLayer):
    """The mean over all positions: numbers are added up in float32 in a fixed order."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, 1, 1) of (N, C, H, W).

        The second half of the positions is added to the first half until one position is left. If
        their number is odd, the middle one is left for the next round.
        """
        rows = x.float().permute(0, 2, 3, 1).flatten(1, 2)
        count, left = rows.shape[1], rows.shape[1]
        while left > 1:
            half = -(-left // 2)
            both = rows[:, : left - half] + rows[:, half:left]
            rows = both if left % 2 == 0 else torch.cat([both, rows[:, half - 1 : half]], 1)
            left = half
        return (rows / number_like(count, rows)).view(len(x), -1, 1, 1)


class ScaledLookup(ExactLayer):
    """A function of one number, looked up in a table with steps of 1 / `TABLE_STEPS`."""

    table: Tensor
    start: Tensor

    def __init__(self, wide: Lookup) -> None:
        super().__init__()
        self.above, self.end = wide.above, wide.end
        self.register_buffer(
            "table", torch.from_numpy(tabulated(wide.function, self.end, self.above))
        )
        self.register_buffer("start", torch.tensor(self.end * TABLE_STEPS + 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to numbers of any shape; float32."""
        x = x.float()
        x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
        # The product is exact, so that it does not matter whether this rounds once or twice.
        places = torch.add(self.start, x, alpha=TABLE_STEPS)
        index = places.clamp_(0, len(self.table) - 1).to(torch.int32)
        values = self.table.index_select(0, index.flatten()).view(x.shape)
        # x is inspected on the CPU only: other devices would synchronise.
        if self.above is None and not (x.is_cpu and x.numel() and bool(x.amax() < self.end)):
            values = torch.where(x >= self.end, x, values)
        return values.permute(0, 3, 1, 2) if x.ndim == 4 else values


def _spread(out: Tensor, shape: Sequence[int], stride: tuple[int, ...]) -> Tensor:
    """Return the view of `out` (N, H', W', O) that taps (N, H, a, W, b, O) are added to.

    Position (y, x) of tap (i, j) goes to row y * stride + i, column x * stride + j.
    """
    by_picture, by_row, by_column, _ = out.stride()
    strides = (by_picture, by_row * stride[0], by_row, by_column * stride[1], by_column, 1)
    return out.as_strided(tuple(shape), strides, out.storage_offset())


def finished(sums: Tensor, bias: Tensor | None, in_place: bool = True) -> Tensor:
    """Add the bias to sums (N, H, W, O); return (N, O, H, W), in new memory unless `in_place`."""
    if bias is not None:
        sums = sums.add_(bias) if in_place else sums + bias
    elif not in_place:
        sums = sums.clone(memory_format=torch.contiguous_format)
    return sums.permute(0, 3, 1, 2)


def _by_onednn(x: Tensor) -> bool:
    return x.is_cpu and in_float32(x) and direct_convolutions()


def size_of(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, int]:
    """Return H and W of a convolution's output for a padded picture (N, H, W, C)."""
    h, w = (
        (side - gap * (taps - 1) - 1) // step + 1
        for side, gap, taps, step in zip(x.shape[1:3], dilation, kernel, stride, strict=True)
    )
    return h, w


def added(blocks: Sequence[Block], out: Tensor) -> None:
    """Write the sum of blocks of products into `out` (P, O), float32.

    Each block is exact, in float32 and in float64; blocks are added in their order.
    """
    single = in_float32(out)
    for number, block in enumerate(blocks):
        part = out if number == 0 else scratch("part", out.shape, out)
        if single:
            torch.mm(*block[0], out=part)
            for inputs, weight in block[1:]:
                part.addmm_(inputs, weight)
        else:
            products = [inputs.double() @ weight.double() for inputs, weight in block]
            part.copy_(torch.stack(products).sum(0))
        if number:
            out.add_(part)
