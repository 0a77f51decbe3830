"""Layers whose sums are exact in float32: the second form of `pipeline.codec.exact_layers`.

Inputs are rounded to whole numbers and weights to whole numbers times a power of two, as
`pipeline.codec.scales` makes them, so that each block of a sum is exact in any order, in float64
and in numpy too. What follows works on single numbers: blocks are added up in float32 in the order
of their inputs, then comes the bias. So the same bits come from any library and device.

Pictures lie in memory channels last: a product's inputs are the rows of a matrix of positions.
Shapes: N batch, C channels, O outputs, H x W positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.exact_layers import ExactLayer, Lookup, local, number_like, padding_of
from pipeline.codec.scales import (
    BLOCK,
    LARGEST_SUM,
    TABLE_STEPS,
    Scale,
    blocks_of,
    scaled_weights,
    tabulated,
    whole_weights,
)

# Bytes that a thread keeps of what a layer needs while it runs.
_KEPT = 2**26
# Views of that memory that a thread keeps.
_VIEWS = 1024
# A block of products: inputs (P, K) and weights (K, O), one pair a tap.
Block = Sequence[tuple[Tensor, Tensor]]
# What is added around a picture: left, right, above and below.
Padding = tuple[int, int, int, int]
_NO_PADDING: Padding = (0, 0, 0, 0)


def scale_of(layer: nn.Module) -> Scale | None:
    """Return the scale that a layer was given; None: it has none."""
    found: Scale | None = getattr(layer, "exact_scale", None)
    return found


def give_scale(layer: nn.Module, scale: Scale | None) -> None:
    """Give a layer its scale; None takes it."""
    if scale is not None:
        # nn.Module types attributes as tensors and modules only; this is neither.
        layer.exact_scale = scale  # type: ignore[assignment]
    elif scale_of(layer) is not None:
        del layer.exact_scale


@contextmanager
def in_float64() -> Iterator[None]:
    """Let this thread add up whole numbers in float64 while this lasts: the same bits, slower."""
    before = getattr(local, "double", False)
    local.double = True
    try:
        yield
    finally:
        local.double = before


class _Scaled(ExactLayer):
    """A layer of products: a matrix (K, O) of weights, and a bias (O,)."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: Any, by_output: Tensor, products: Sequence[Sequence[slice]]) -> None:
        """Take the weights `by_output` (O, K).

        `products` has, for each block that is added up exactly, the parts of K that make it up,
        side by side: one for each matrix product.
        """
        super().__init__()
        scale = scale_of(layer)
        assert scale is not None
        self.scale, self.products = scale, products
        blocks = [slice(block[0].start, block[-1].stop) for block in products]
        found = torch.from_numpy(scaled_weights(by_output.numpy(), blocks, scale))
        self.register_buffer("weight", found.t().contiguous())
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
        """Write the sum of all products into `out` (P, O); `inputs` (P, K) one for each."""
        rest = iter(inputs)
        added([[(next(rest), weight) for weight in block] for block in self.weights()], out)

    def finished(self, sums: Tensor, in_place: bool = True) -> Tensor:
        """Return sums (N, H, W, O) as outputs (N, O, H, W); without `in_place` in new memory."""
        if self.bias is not None:
            sums = sums.add_(self.bias) if in_place else sums + self.bias
        elif not in_place:
            sums = sums.clone(memory_format=torch.contiguous_format)
        return sums.permute(0, 3, 1, 2)


class ScaledConv(_Scaled):
    """A convolution of all channels: a product for each tap, of the picture shifted."""

    def __init__(self, layer: nn.Conv2d, weight: Tensor | None = None) -> None:
        """`weight` (O, C, k, k) in place of the layer's own."""
        weight = layer.weight if weight is None else weight
        channels, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.channels, self.outputs = channels, len(weight)
        # Blocks of (tap, channels): several taps where they fit into one.
        step = max(1, BLOCK // channels)
        blocks = [
            [(tap, some) for tap in range(first, min(first + step, taps))]
            for first in range(0, taps, step)
            for some in blocks_of(channels)
        ]
        # What each product takes: which tap, from which channel on, how many.
        self.inputs = [
            (tap, some.start, some.stop - some.start) for block in blocks for tap, some in block
        ]
        products = [
            [slice(tap * channels + some.start, tap * channels + some.stop) for tap, some in block]
            for block in blocks
        ]
        # (O, k * k * C): a tap's inputs lie side by side.
        super().__init__(layer, weight.permute(0, 2, 3, 1).flatten(1), products)
        self.padding, self.mode = padding_of(layer), layer.padding_mode

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W'), float32."""
        x = whole_picture(x, self.scale, self.padding, self.mode)
        n, above, across, channels = x.shape
        h, w = outputs_of(x, self.kernel, self.stride, self.dilation)
        if self.stride == (1, 1):
            # Rows are as long as those of the padded picture; their ends are left out.
            length, size = ((n - 1) * above + h - 1) * across + w, (n, above, across)
            starts = [(i * across + j) * channels for i, j in self._taps()]
            inputs = [
                x.as_strided((length, count), (channels, 1), starts[tap] + first)
                for tap, first, count in self.inputs
            ]
        else:
            (sh, sw), length, size = self.stride, n * h * w, (n, h, w)
            taps = [
                x[:, i : i + (h - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw].reshape(
                    -1, channels
                )
                for i, j in self._taps()
            ]
            inputs = [taps[tap][:, first : first + count] for tap, first, count in self.inputs]
        shape = (math.prod(size), self.outputs)
        if size == (n, h, w):
            sums = x.new_empty(shape)
            self.added(inputs, sums)
            return self.finished(sums.view(n, h, w, -1))
        sums = scratch("sums", shape, x)
        self.added(inputs, sums[:length])
        return self.finished(sums.view(*size, -1)[:, :h, :w], in_place=False)

    def _taps(self) -> list[tuple[int, int]]:
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return [(i * dh, j * dw) for i in range(kh) for j in range(kw)]


class ScaledTaps(_Scaled):
    """A depthwise convolution: all taps of a channel make up one block."""

    def __init__(self, layer: nn.Conv2d, weight: Tensor | None = None) -> None:
        """`weight` (C, 1, k, k) in place of the layer's own."""
        weight = layer.weight if weight is None else weight
        super().__init__(layer, weight.flatten(1), [[slice(0, weight[0].numel())]])
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.mode = padding_of(layer), layer.padding_mode
        left, right, above, below = self.padding
        self.even = left == right and above == below and self.mode == "zeros"

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same number of channels, float32."""
        if x.is_cpu and in_float32(x) and _direct():
            sums = self._by_onednn(x)
        else:
            x = whole_picture(x, self.scale, self.padding, self.mode)
            sums = self._by_taps(x if in_float32(x) else x.double()).float()
        return self.finished(sums)

    def _by_onednn(self, x: Tensor) -> Tensor:
        padding = (self.padding[2], self.padding[0]) if self.even else (0, 0)
        x = whole_picture(x, self.scale, _NO_PADDING if self.even else self.padding, self.mode)
        first, groups = x.permute(0, 3, 1, 2), self.weight.shape[1]
        taps = self.weights()[0][0].t().reshape(groups, 1, *self.kernel)
        sums = F.conv2d(first, taps, None, self.stride, padding, self.dilation, groups)
        return sums.permute(0, 2, 3, 1)

    def _by_taps(self, x: Tensor) -> Tensor:
        """Add up products of single numbers."""
        kw, (sh, sw), (dh, dw) = self.kernel[1], self.stride, self.dilation
        h, w = outputs_of(x, self.kernel, self.stride, self.dilation)
        out = x.new_zeros(len(x), h, w, x.shape[3])
        for number, weight in enumerate(self.weight.to(x.dtype)):
            i, j = number // kw * dh, number % kw * dw
            part = x[:, i : i + (h - 1) * sh + 1 : sh, j : j + (w - 1) * sw + 1 : sw]
            # All of the sum is exact, so it does not matter whether this rounds once or twice.
            out.addcmul_(part, weight)
        return out


class ScaledDeconv(_Scaled):
    """A transposed convolution: one product for all taps, each then added where it belongs."""

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        inputs = layer.in_channels
        # Outputs of a tap lie side by side: (k * k * O, C).
        by_output = layer.weight.permute(2, 3, 1, 0).reshape(-1, inputs)
        self.places = blocks_of(inputs)
        super().__init__(layer, by_output, [[some] for some in self.places])
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        assert not isinstance(layer.padding, str)
        self.pads, self.extra = layer.padding, layer.output_padding

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W'), float32."""
        x = whole_picture(x, self.scale)
        n, h, w, inputs = x.shape
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        # Without padding, and with the rows and columns at the end that are asked for beside.
        size = (
            (h - 1) * sh + dh * (kh - 1) + 1 + self.extra[0],
            (w - 1) * sw + dw * (kw - 1) + 1 + self.extra[1],
        )
        columns = scratch("sums", (n * h * w, self.weight.shape[1]), x)
        rows = x.view(-1, inputs)
        self.added([rows[:, some] for some in self.places], columns)
        out = x.new_zeros(n, *size, columns.shape[1] // (kh * kw))
        parts = columns.view(n, h, w, kh, kw, -1).permute(0, 1, 3, 2, 4, 5)
        # Taps that a stride keeps apart are added together, each to numbers of its own.
        down, right = (sh if dh == 1 else 1), (sw if dw == 1 else 1)
        for i in range(0, kh, down):
            for j in range(0, kw, right):
                part = parts[:, :, i : i + down, :, j : j + right]
                # In this order, whatever the device: each number of the sum is rounded.
                _spread(out[:, i * dh :, j * dw :], part.shape, self.stride).add_(part)
        top, left = self.pads
        out = out[:, top : size[0] - top, left : size[1] - left]
        return self.finished(out, in_place=not any(self.pads))


class ScaledLinear(_Scaled):
    """A linear layer over the last dimension."""

    def __init__(self, layer: nn.Linear) -> None:
        self.places = blocks_of(layer.in_features)
        super().__init__(layer, layer.weight, [[some] for some in self.places])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., O), float32."""
        rows = whole_inputs(x, self.scale).view(-1, x.shape[-1])
        sums = x.new_empty(len(rows), self.weight.shape[1], dtype=torch.float32)
        self.added([rows[:, some] for some in self.places], sums)
        return (sums if self.bias is None else sums.add_(self.bias)).view(*x.shape[:-1], -1)


class ScaledNorm(ExactLayer):
    """Layer normalisation over channels, its two sums those of whole numbers."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Any) -> None:
        scale = scale_of(layer)
        assert scale is not None
        super().__init__()
        self.scale, self.eps = scale, layer.eps
        self.register_buffer("weight", layer.weight.float())
        self.register_buffer("bias", layer.bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); float32."""
        last = x.float().permute(0, 2, 3, 1)
        whole, channels = whole_inputs(last, self.scale), last.shape[3]
        # Exact in float32 where even the largest numbers keep the bound.
        fits = channels * self.scale.largest**2 <= LARGEST_SUM
        dtype = torch.float32 if fits else torch.float64
        sums = whole.sum(3, keepdim=True, dtype=dtype).double()
        squares = (whole.square_() if fits else whole.double().square_()).sum(3, keepdim=True)
        count, unit = number_like(channels, sums), 2.0**-self.scale.exponent
        mean = sums / count
        variance = (squares.double() / count - mean * mean).clamp_(min=0) * (unit * unit)
        divisor = (variance + self.eps).sqrt().float()
        normal = last.sub((mean * unit).float()).div_(divisor)
        return normal.mul_(self.weight).add_(self.bias).permute(0, 3, 1, 2)


class OrderedMean(ExactLayer):
    """The mean over all positions: numbers are added up in float32 in an order of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, 1, 1) of (N, C, H, W).

        The second half of the positions is added to the first, until one is left; where their
        number is odd, the one in the middle waits.
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
    """A function of one number by its table, in steps of 1 / `TABLE_STEPS`."""

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
        found = self.table.index_select(0, index.flatten()).view(x.shape)
        # Looked at on the CPU alone: elsewhere it would wait.
        if self.above is None and not (x.is_cpu and x.numel() and bool(x.amax() < self.end)):
            found = torch.where(x >= self.end, x, found)
        return found.permute(0, 3, 1, 2) if x.ndim == 4 else found


def _spread(out: Tensor, shape: Sequence[int], stride: tuple[int, ...]) -> Tensor:
    """Return the numbers of out (N, H', W', O) that taps (N, H, a, W, b, O) are added to.

    Position (y, x) of tap (i, j) goes to row y * stride + i, column x * stride + j.
    """
    by_picture, by_row, by_column, _ = out.stride()
    strides = (by_picture, by_row * stride[0], by_row, by_column * stride[1], by_column, 1)
    return out.as_strided(tuple(shape), strides, out.storage_offset())


def whole_picture(
    x: Tensor, scale: Scale, padding: Padding = _NO_PADDING, mode: str = "zeros"
) -> Tensor:
    """Return (N, C, H, W) as whole numbers (N, H', W', C), padded left, right, above and below.

    They are the thread's until its next call.
    """
    if mode != "zeros" and any(padding):
        x, padding = F.pad(x, padding, mode), _NO_PADDING
    return whole_inputs(x.permute(0, 2, 3, 1), scale, padding)


def whole_inputs(x: Tensor, scale: Scale, padding: Padding = _NO_PADDING) -> Tensor:
    """Return x in units of 2^-exponent, rounded and held within the scale's bits; float32.

    `padding` is what zeros (N, H, W, C) get around H and W. See `whole_picture`.
    """
    x = x.float()
    out, inside, *borders = _views("inputs", _around(x.shape, padding), padding, x)
    for border in borders:
        border.zero_()
    torch.mul(x, 2.0**scale.exponent, out=inside)
    return out.round_().clamp_(-scale.largest, scale.largest)


def outputs_of(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, int]:
    """Return H and W of what a convolution makes of a padded picture (N, H, W, C)."""
    h, w = (
        (side - gap * (taps - 1) - 1) // step + 1
        for side, gap, taps, step in zip(x.shape[1:3], dilation, kernel, stride, strict=True)
    )
    return h, w


def added(blocks: Sequence[Block], out: Tensor) -> None:
    """Write the sum of blocks of products into `out` (P, O), float32.

    Each block is exact, in float32 as in float64; they are added in their order.
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


def scratch(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return numbers of `shape` to be written, float32, where `like` is.

    On the CPU they are this thread's, the same memory for each call with a name: pages that a
    process gets anew cost as much as what is written to them.
    """
    return _views(name, shape, _NO_PADDING, like)[0]


def _views(name: str, shape: tuple[int, ...], padding: Padding, like: Tensor) -> list[Tensor]:
    """Return `scratch`, what lies inside of its padding, and the parts of the padding.

    A thread keeps the views, too: to make them takes longer than a small product.
    """
    count = math.prod(shape)
    if not like.is_cpu or 4 * count > _KEPT:
        return _padded(like.new_empty(shape, dtype=torch.float32), padding)
    views: dict[Any, list[Tensor]] = local.__dict__.setdefault("views", {})
    key = name, shape, padding
    if key not in views:
        # What is made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            memory = _memory(name, count, views)
            views[key] = _padded(memory[:count].view(shape), padding)
    return views[key]


def _memory(name: str, count: int, views: dict[Any, list[Tensor]]) -> Tensor:
    """Return this thread's memory with a name, at least `count` numbers.

    Drops the `views` of memory that is replaced, and all of them when they are many.
    """
    kept: dict[str, Tensor] = local.__dict__.setdefault("scratch", {})
    small = name not in kept or kept[name].numel() < count
    if small or len(views) >= _VIEWS:
        views.clear()
    if small:
        kept[name] = torch.empty(count)
    return kept[name]


def _around(shape: tuple[int, ...], padding: Padding) -> tuple[int, ...]:
    """Return the shape of numbers (N, H, W, C) once they are padded; without padding, any shape."""
    if padding == _NO_PADDING:
        return shape
    (n, h, w, c), (left, right, above, below) = shape, padding
    return n, h + above + below, w + left + right, c


def _padded(out: Tensor, padding: Padding) -> list[Tensor]:
    """Return `out`, what lies inside of its padding, and the parts of the padding."""
    if padding == _NO_PADDING:
        return [out, out]
    (left, right, above, below), (_, h, w, _) = padding, out.shape
    inside = out[:, above : h - below, left : w - right]
    around = [out[:, :above], out[:, h - below :], out[:, :, :left], out[:, :, w - right :]]
    return [out, inside, *around]


def in_float32(x: Tensor) -> bool:
    """Tell whether float32 is to be used where x is, and its products are what IEEE 754 says."""
    if getattr(local, "double", False) or torch.is_autocast_enabled(x.device.type):
        return False
    try:
        precise = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch's older and newer settings were mixed
        return False
    return precise and _adds_up(x.device)


@cache
def _direct() -> bool:
    """Tell whether this torch's depthwise convolutions on the CPU are sums of plain products.

    torch asks oneDNN for its direct algorithm, whose order of summation does not matter. One that
    transforms its inputs (Winograd) would round, and not give back the sums that this looks at.
    """
    # torch gives this function no types.
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    rng, scale = np.random.default_rng(0), Scale(0, 13)
    weights, _ = whole_weights(rng.standard_normal((32, 9)), [slice(None)], scale)
    signs = np.sign(weights).reshape(1, 32, 3, 3)
    inputs = np.tile(signs * scale.largest, (1, 1, 4, 6))
    found, taps = torch.from_numpy(inputs), torch.from_numpy(weights).view(32, 1, 3, 3)
    wanted = F.conv2d(found, taps, groups=32, padding=1)
    last = found.float().contiguous(memory_format=torch.channels_last)
    return torch.equal(F.conv2d(last, taps.float(), groups=32, padding=1).double(), wanted)


@cache
def _adds_up(device: torch.device) -> bool:
    """Tell whether products of whole numbers at their bounds are right on this device."""
    rng = np.random.default_rng(0)
    scale = Scale(0, 11)
    weights, _ = whole_weights(rng.standard_normal((64, BLOCK)), [slice(None)], scale)
    inputs = np.where(rng.random((BLOCK, 64)) < 0.5, -1.0, 1.0) * scale.largest
    inputs[:, :32] = np.sign(weights[:32].T) * scale.largest
    wanted = torch.from_numpy(weights @ inputs)
    found = [torch.from_numpy(part).float().to(device) for part in (weights, inputs)]
    assert wanted.abs().max() <= LARGEST_SUM
    return torch.equal((found[0] @ found[1]).cpu().double(), wanted)
