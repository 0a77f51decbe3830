"""Layers whose sums are exact in float32: the second form of `pipeline.codec.exact_layers`.

Inputs and weights are whole numbers, as `pipeline.codec.scales` makes them. What a layer returns
is float32: the sum, rounded once where several blocks make it up, times its power of two, plus
the bias. So the same bits come from any order of the sums, from float64, and from numpy.

Shapes: N batch, C channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.exact_layers import ExactLayer, local, number_like, padding_of, taps_added
from pipeline.codec.scales import BLOCK, LARGEST_SUM, Array, Scale, blocks_of, whole_weights


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
    """A layer with whole weights, cut into blocks of at most `BLOCK` inputs."""

    factor: Tensor
    bias: Tensor | None

    def __init__(self, scale: Scale, bias: Tensor | None, after: int) -> None:
        """`after` are the dimensions behind the outputs'."""
        super().__init__()
        self.scale, self.after = scale, after
        self.register_buffer("bias", None if bias is None else bias.float().view(-1, *[1] * after))

    def keep_factor(self, factor: Array) -> None:
        """Keep each output's factor (O,)."""
        found = torch.from_numpy(factor).float().view(-1, *[1] * self.after)
        self.register_buffer("factor", found)

    def finished(self, sums: Tensor) -> Tensor:
        """Return sums (..., O, ...) as outputs."""
        # One rounding where blocks were added in float64, none else.
        out = sums.float() * self.factor
        return out if self.bias is None else out.add_(self.bias)


class ScaledConv(_Scaled):
    """A convolution, dense or depthwise."""

    weight: Tensor

    def __init__(self, layer: nn.Conv2d, weight: Tensor | None = None) -> None:
        """`weight` (O, C / groups, k, k) in place of the layer's own."""
        scale = scale_of(layer)
        assert scale is not None
        super().__init__(scale, layer.bias, 2)
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding = padding_of(layer)
        self.mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        self.depthwise = layer.groups > 1
        weight = layer.weight if weight is None else weight
        # (O, k * k * C): a tap's inputs lie side by side.
        flat = weight.permute(0, 2, 3, 1).flatten(1)
        channels, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
        # Blocks of (tap, channels): several taps where they fit into one.
        step = 1 if self.depthwise else max(1, BLOCK // channels)
        self.blocks = [
            [(tap, some) for tap in range(first, min(first + step, taps))]
            for first in range(0, taps, step)
            for some in blocks_of(channels)
        ]
        places = [
            slice(
                block[0][0] * channels + block[0][1].start,
                block[-1][0] * channels + block[-1][1].stop,
            )
            for block in self.blocks
        ]
        places = [slice(0, taps)] if self.depthwise else places
        whole, factor = whole_weights(flat.numpy(), places, scale)
        self.keep_factor(factor)
        whole32 = torch.from_numpy(whole).float()
        if self.depthwise:
            self.register_buffer("weight", whole32.view_as(weight))
        else:
            self.register_buffer("weight", whole32)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W'), float32."""
        x = whole_inputs(x, self.scale)
        if any(self.padding):
            x = F.pad(x, self.padding, self.mode)
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        h, w = (
            (x.shape[2] - dh * (kh - 1) - 1) // sh + 1,
            (x.shape[3] - dw * (kw - 1) - 1) // sw + 1,
        )
        if not self.depthwise:
            return self.finished(self._dense(x, h, w))
        if x.is_cpu and _direct() and in_float32(x):
            sums = F.conv2d(
                x, self.weight, stride=self.stride, dilation=self.dilation, groups=x.shape[1]
            )
        else:
            sums = self._by_taps(x if in_float32(x) else x.double(), h, w)
        return self.finished(sums)

    def _dense(self, x: Tensor, h: int, w: int) -> Tensor:
        """Add up a matrix product for each block, of the picture shifted."""
        if self.stride != (1, 1):
            (sh, sw), (dh, dw) = self.stride, self.dilation
            taps = [
                x[:, :, i * dh : i * dh + (h - 1) * sh + 1 : sh, j * dw :][..., : (w - 1) * sw + 1]
                [..., ::sw].flatten(2)
                for i in range(self.kernel[0]) for j in range(self.kernel[1])
            ]  # fmt: skip
            width, length = w, h * w
        else:
            flat, width = x.flatten(2), x.shape[3]
            length = (h - 1) * width + w
            starts = [
                i * self.dilation[0] * width + j * self.dilation[1]
                for i in range(self.kernel[0]) for j in range(self.kernel[1])
            ]  # fmt: skip
            taps = [flat[:, :, start : start + length] for start in starts]
        sums = [
            added(
                self.weight,
                [[(self._place(t, b), taps[t][n, b]) for t, b in block] for block in self.blocks],
            )
            for n in range(len(x))
        ]
        if length == h * width:
            return _joined(sums).view(len(x), -1, h, w)
        # Rows are as long as those of the padded picture; their ends are left out.
        out = F.pad(_joined(sums), (0, h * width - length))
        return out.view(len(x), -1, h, width)[..., :w]

    def _place(self, tap: int, some: slice) -> slice:
        return slice(tap * self.channels + some.start, tap * self.channels + some.stop)

    def _by_taps(self, x: Tensor, h: int, w: int) -> Tensor:
        return taps_added(x, self.weight.to(x.dtype), self.stride, self.dilation, h, w)


class ScaledDeconv(_Scaled):
    """A transposed convolution: a matrix product whose columns are added up in float64."""

    weight: Tensor

    def __init__(self, layer: nn.ConvTranspose2d) -> None:
        scale = scale_of(layer)
        assert scale is not None
        super().__init__(scale, layer.bias, 2)
        inputs, outputs, taps = layer.in_channels, layer.out_channels, layer.weight[0, 0].numel()
        by_output = layer.weight.permute(1, 2, 3, 0).reshape(outputs, taps, inputs)
        self.places = blocks_of(inputs)
        # A unit for each output, whose taps are added up: (O, k * k * C) to find it.
        tapwise = [
            slice(tap * inputs + some.start, tap * inputs + some.stop)
            for tap in range(taps)
            for some in self.places
        ]
        whole, factor = whole_weights(by_output.flatten(1).numpy(), tapwise, scale)
        self.keep_factor(factor)
        self.register_buffer("weight", torch.from_numpy(whole).float().view(-1, inputs))
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        assert not isinstance(layer.padding, str)
        self.pads, self.extra = layer.padding, layer.output_padding

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W'), float32."""
        flat = whole_inputs(x, self.scale).flatten(2)
        columns = [
            added(self.weight, [[(some, one[some])] for some in self.places]) for one in flat
        ]  # fmt: skip
        size = tuple(
            (side - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
            for side, stride, padding, dilation, kernel, extra in zip(
                x.shape[2:], self.stride, self.pads, self.dilation, self.kernel, self.extra,
                strict=True,
            )
        )  # fmt: skip
        sums = F.fold(
            _joined(columns).double(), size, self.kernel, self.dilation, self.pads, self.stride
        )
        return self.finished(sums)


class ScaledLinear(_Scaled):
    """A linear layer over the last dimension."""

    weight: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        scale = scale_of(layer)
        assert scale is not None
        super().__init__(scale, layer.bias, 0)
        self.places = blocks_of(layer.in_features)
        whole, factor = whole_weights(layer.weight.numpy(), self.places, scale)
        self.keep_factor(factor)
        self.register_buffer("weight", torch.from_numpy(whole).float())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., O), float32."""
        flat = whole_inputs(x, self.scale).reshape(-1, x.shape[-1]).t()
        sums = added(self.weight, [[(some, flat[some])] for some in self.places])
        return self.finished(sums.t()).view(*x.shape[:-1], -1)


class ScaledNorm(ExactLayer):
    """Layer normalisation over channels, its two sums of whole numbers."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Any) -> None:
        scale = scale_of(layer)
        assert scale is not None
        super().__init__()
        self.scale, self.eps = scale, layer.eps
        self.register_buffer("weight", layer.weight.float().view(-1, 1, 1))
        self.register_buffer("bias", layer.bias.float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W); float32."""
        x = x.float()
        whole, count = whole_inputs(x, self.scale), number_like(x.shape[1], x.new_empty(0).double())
        # In float64: sums of squares of 8,192 channels of 16 bits stay below 2^44.
        mean = whole.sum(1, keepdim=True, dtype=torch.float64) / count
        squares = whole.double().square_().sum(1, keepdim=True) / count
        unit = 2.0**-self.scale.exponent
        variance = (squares - mean * mean).clamp_(min=0) * (unit * unit)
        divisor = (variance + self.eps).sqrt().float()
        normal: Tensor = (x - (mean * unit).float()) / divisor
        return normal.mul_(self.weight).add_(self.bias)


def _joined(pictures: list[Tensor]) -> Tensor:
    return pictures[0][None] if len(pictures) == 1 else torch.stack(pictures)


def whole_inputs(x: Tensor, scale: Scale) -> Tensor:
    """Return x in units of 2^-exponent, rounded and held within the scale's bits; float32."""
    whole = x.float() * 2.0**scale.exponent
    return whole.round_().clamp_(-scale.largest, scale.largest)


def added(weight: Tensor, blocks: list[list[tuple[slice, Tensor]]]) -> Tensor:
    """Return the sum of blocks of products: `weight` (O, K)[:, place] times inputs (K_i, P).

    float32 for one block, float64 for several; exact in either.
    """
    dtype = torch.float32 if in_float32(weight) else torch.float64
    total: Tensor | None = None
    for block in blocks:
        part: Tensor | None = None
        for place, inputs in block:
            left, right = weight[:, place].to(dtype), inputs.to(dtype)
            part = left @ right if part is None else torch.addmm(part, left, right, out=part)
        assert part is not None
        if len(blocks) == 1:
            return part
        total = part.double() if total is None else total.add_(part.double())
    assert total is not None
    return total


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
    """Tell whether this torch's depthwise convolutions on the CPU are direct sums."""
    # torch gives this function no types.
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


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
