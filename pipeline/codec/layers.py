"""The building blocks: NAF block, residual bottleneck, masked convolution, normalisation, heads.

Shapes: N batch, C channels, H x W positions. All work in any memory format and are quickest
with channels last, where the normalisation needs no copy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution that keeps H and W, or divides both by `stride`."""
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def deconv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.ConvTranspose2d:
    """Return a transposed convolution that keeps H and W, or multiplies both by `stride`."""
    return nn.ConvTranspose2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, output_padding=stride - 1
    )


class MaskedConv2d(nn.Conv2d):
    """A convolution of stride 1 with some taps set to zero, for context models.

    `mask` names the taps that are kept: "A" those before the centre in raster order, "B" the centre
    as well (van den Oord et al. 2016), "checkerboard" those at an odd distance |dy| + |dx| from the
    centre, which have the other colour (He et al. 2021). Kernels are odd; H and W are kept.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, mask: str, groups: int = 1, bias: bool = True
    ) -> None:
        """Raise `ValueError` for another mask or an even kernel."""
        if kernel % 2 == 0:
            raise ValueError(f"a masked convolution's kernel is odd, not {kernel}")
        _taps(mask, kernel)
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bias)
        self.mask = mask

    def masked_weight(self) -> Tensor:
        """Return the weight (O, C / groups, k, k), with masked taps set to zero."""
        taps = torch.tensor(_taps(self.mask, self.kernel_size[0]), dtype=self.weight.dtype)
        return self.weight * taps.to(self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H, W)."""
        half = self.kernel_size[0] // 2
        return F.conv2d(x, self.masked_weight(), self.bias, padding=half, groups=self.groups)


def _taps(mask: str, kernel: int) -> list[list[float]]:
    half = kernel // 2
    seen: dict[str, Callable[[int, int], bool]] = {
        "A": lambda y, x: (y, x) < (0, 0),
        "B": lambda y, x: (y, x) <= (0, 0),
        "checkerboard": lambda y, x: (y + x) % 2 == 1,
    }
    if mask not in seen:
        raise ValueError(f"a mask is one of {', '.join(seen)}, not {mask!r}")
    around = range(-half, half + 1)
    return [[float(seen[mask](y, x)) for x in around] for y in around]


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each position, with weight and bias."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        last = x.permute(0, 2, 3, 1)
        normal = F.layer_norm(last, (x.shape[1],), self.weight, self.bias, self.eps)
        return normal.permute(0, 3, 1, 2)


class GlobalMean(nn.Module):
    """The mean over all positions: (N, C, H, W) -> (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of each channel."""
        return x.mean((2, 3), keepdim=True)


class NAFBlock(nn.Module):
    """A block with a gate as its only non-linearity (NAFNet, Chen et al. 2022).

    x + beta * project(attend(gate(depthwise(expand(norm(x)))))), then
    x + gamma * mix(gate(widen(norm(x)))); beta and gamma start at 0, so the block starts as the
    identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        double = 2 * channels
        self.spatial_norm = ChannelNorm(channels)
        self.expand = conv(channels, double, 1)
        self.depthwise = nn.Conv2d(double, double, 3, padding=1, groups=double)
        self.pool = GlobalMean()
        self.attend = conv(channels, channels, 1)
        self.project = conv(channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.channel_norm = ChannelNorm(channels)
        self.widen = conv(channels, double, 1)
        self.mix = conv(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        h = _gate(self.depthwise(self.expand(self.spatial_norm(x))))
        h = h * self.attend(self.pool(h))
        x = x + self.beta * self.project(h)
        h = _gate(self.widen(self.channel_norm(x)))
        out: Tensor = x + self.gamma * self.mix(h)
        return out


def _gate(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return first * second


class ResidualBottleneck(nn.Module):
    """conv 1x1 to half the channels, ReLU, conv 3x3, ReLU, conv 1x1 back; plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = conv(channels, half, 1)
        self.spatial = conv(half, half, 3)
        self.restore = conv(half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        h = F.relu(self.reduce(x), inplace=True)
        h = F.relu(self.spatial(h), inplace=True)
        out: Tensor = x + self.restore(h)
        return out


def head(inputs: int, widths: tuple[int, int], outputs: int) -> nn.Sequential:
    """Return three 3x3 convolutions with GELUs between them: `inputs` to `outputs` channels."""
    first, second = widths
    return nn.Sequential(
        conv(inputs, first, 3), nn.GELU(), conv(first, second, 3), nn.GELU(),
        conv(second, outputs, 3),
    )  # fmt: skip
