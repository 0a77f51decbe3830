"""The building blocks of the small model. All of their layers have an exact form.

Shapes: N batch, C channels, H x W positions, K rates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.architectures.small.rates import Rate, mixed
from pipeline.codec.exact import conv_form, exact_form
from pipeline.codec.exact_layers import Lookup
from pipeline.codec.layers import ChannelNorm

_LARGEST_LOG = 8.0


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, computed as a matrix product over channels-last positions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H, W)."""
        out = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return out.permute(0, 3, 1, 2)


def set_zero(layer: nn.Conv2d) -> None:
    """Make `layer` output zeros until training changes it."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


class Exp(nn.Module):
    """e^x, with x clamped to at most 8."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x of any shape to the same shape."""
        return x.clamp(max=_LARGEST_LOG).exp()


class RateAffine(nn.Module):
    """x * (1 + scale(R)) + shift(R), with vectors interpolated linearly between K rates."""

    def __init__(self, channels: int, rates: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(rates, channels))
        self.shift = nn.Parameter(torch.zeros(rates, channels))

    def forward(self, x: Tensor, rate: Rate) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        # Two operations, because a fused one rounds once on some machines and twice on others.
        return x * (mixed(rate, self.scale) + 1) + mixed(rate, self.shift)


class GatedBlock(nn.Module):
    """x + project(gate(expand(depthwise(affine(norm(x)))))): starts as the identity.

    The gate multiplies one half of its channels by the other; it is the only non-linearity
    beside the norm.
    """

    def __init__(self, channels: int, inner: int, rates: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.affine = RateAffine(channels, rates)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.expand = Pointwise(channels, 2 * inner)
        self.project = Pointwise(inner, channels)
        # The block starts as the identity.
        set_zero(self.project)

    def forward(self, x: Tensor, rate: Rate) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        h = self.expand(self.depthwise(self.affine(self.norm(x), rate)))
        first, second = h.chunk(2, dim=1)
        out: Tensor = x + self.project(first * second)
        return out


def spread(x: Tensor, factor: int) -> Tensor:
    """Turn (N, (row, column, C), H, W) into (N, C, factor H, factor W), in channels-last memory."""
    n, c, h, w = x.shape
    c //= factor * factor
    x = x.permute(0, 2, 3, 1).reshape(n, h, w, factor, factor, c)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, h * factor, w * factor, c)
    return x.permute(0, 3, 1, 2)


exact_form(Pointwise, conv_form)
exact_form(Exp, lambda layer: Lookup(math.exp, above=math.exp(_LARGEST_LOG)))
