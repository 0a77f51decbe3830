"""Picture to latent and back, latent to hyper-latent and back.

Shapes: N batch, M latent channels, Z hyper-latent channels; h = H/16, w = W/16.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pipeline.codec.architectures.cca.config import RESIDUAL_BLOCKS, CCAConfig
from pipeline.codec.architectures.cca.wavelets import WaveletDown, WaveletUp
from pipeline.codec.layers import NAFBlock, ResidualBottleneck, conv, deconv


def _residuals(width: int) -> list[nn.Module]:
    return [ResidualBottleneck(width) for _ in range(RESIDUAL_BLOCKS)]


def _nafs(width: int, count: int) -> list[nn.Module]:
    return [NAFBlock(width) for _ in range(count)]


class Analysis(nn.Module):
    """g_a: (N, 3, H, W) -> (N, M, h, w), for H and W multiples of 16."""

    def __init__(self, config: CCAConfig) -> None:
        super().__init__()
        widths = config.transform_channels
        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList(
            conv(before, width, 5, stride=2) for before, width in zip(inputs, widths, strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*_residuals(width), *_nafs(width, count))
            for width, count in zip(widths, config.transform_blocks, strict=True)
        )
        self.last = conv(widths[-1], config.latent_channels, 5, stride=2)
        sizes = (*inputs, widths[-1], config.latent_channels) if config.shortcuts else ()
        self.shortcuts = nn.ModuleList(WaveletDown(*both) for both in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the latent y of pictures in [0, 1]."""
        return _through(x, [*self.down, self.last], self.blocks, self.shortcuts)


class Synthesis(nn.Module):
    """g_s, the mirror image: (N, M, h, w) -> (N, 3, H, W), not clamped."""

    def __init__(self, config: CCAConfig) -> None:
        super().__init__()
        widths = config.transform_channels[::-1]
        inputs = (config.latent_channels, *widths[:-1])
        self.up = nn.ModuleList(
            deconv(before, width, 5, stride=2) for before, width in zip(inputs, widths, strict=True)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*_nafs(width, count), *_residuals(width))
            for width, count in zip(widths, config.transform_blocks[::-1], strict=True)
        )
        self.last = deconv(widths[-1], 3, 5, stride=2)
        sizes = (*inputs, widths[-1], 3) if config.shortcuts else ()
        self.shortcuts = nn.ModuleList(WaveletUp(*both) for both in pairwise(sizes))

    def forward(self, y_hat: Tensor) -> Tensor:
        """Return pictures, about [0, 1]."""
        return _through(y_hat, [*self.up, self.last], self.blocks, self.shortcuts)


def _through(
    x: Tensor, changes: Sequence[nn.Module], blocks: nn.ModuleList, shortcuts: nn.ModuleList
) -> Tensor:
    """Run x through `changes` of resolution, the `blocks` after each, and `shortcuts` beside."""
    shortcut = x
    for level, change in enumerate(changes):
        x = change(x)
        if level < len(blocks):
            x = blocks[level](x)
        if level < len(shortcuts):
            shortcut = shortcuts[level](shortcut)
            x = x + shortcut
    return x


def hyper_analysis(config: CCAConfig) -> nn.Sequential:
    """Return h_a: (N, M, h, w) -> (N, Z, h/4, w/4)."""
    width = config.transform_channels[-1]
    return nn.Sequential(
        conv(config.latent_channels, width, 3), nn.GELU(), conv(width, width, 5, stride=2),
        nn.GELU(), conv(width, config.hyper_latent_channels, 5, stride=2),
    )  # fmt: skip


def hyper_synthesis(config: CCAConfig) -> nn.Sequential:
    """Return h_mean_s or h_scale_s: (N, Z, h/4, w/4) -> (N, M, h, w)."""
    width = config.transform_channels[-1]
    return nn.Sequential(
        deconv(config.hyper_latent_channels, width, 5, stride=2), nn.GELU(),
        deconv(width, width, 5, stride=2), nn.GELU(), deconv(width, config.latent_channels, 3),
    )  # fmt: skip
