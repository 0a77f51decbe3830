"""Initialises the transforms as a pyramid of Haar wavelets: training starts with a picture.

Each halving of the resolution splits a channel into four: sums and differences of 2 x 2
neighbours. After four halvings, the channels are Walsh functions of a 16 x 16 block, each with a
colour and two frequencies (u, v). The lowest frequencies that fit are kept, in order, so that the
first slices hold the coarse picture. The synthesis starts as the transpose, every residual block
as the identity, and the predicted scales follow the spectrum of natural pictures. Training may
change all of it; the start only saves the steps from noise to a first blurred picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.architectures.cca.wavelets import close
from pipeline.codec.layers import ResidualBottleneck

if TYPE_CHECKING:
    from pipeline.codec.architectures.cca.model import CCAModel

# Orthonormal rows: luminance and two colour differences.
_COLOURS = ((3**-0.5,) * 3, (2**-0.5, 0.0, -(2**-0.5)), (6**-0.5, -2 * 6**-0.5, 6**-0.5))
# A colour difference is ordered like a luminance band whose frequency is this much higher.
_COLOUR_PENALTY = 4
# Quantisation steps of the latent per unit of an orthonormal transform.
_GAIN = 3.0
_LEVELS = 4


@dataclass(frozen=True)
class _Band:
    """A channel: its colour and its frequencies in a 16 x 16 block, as far as they are known."""

    colour: int
    u: int = 0
    v: int = 0

    @property
    def cost(self) -> tuple[int, int, int]:
        """The sort key of channels: the lower, the earlier."""
        return (
            self.u + self.v + _COLOUR_PENALTY * (self.colour > 0), max(self.u, self.v), self.colour
        )  # fmt: skip

    @property
    def spread(self) -> float:
        """The rough standard deviation of the latent, which falls with frequency as in pictures."""
        strength = 0.15 if self.colour else 1.0
        return float(_GAIN * strength * 4.0 / (1 + self.u + self.v) ** 1.7)


@torch.no_grad()
def start_as_pyramid(model: CCAModel) -> None:
    """Set the transforms and the predicted scales of `model` as this module describes."""
    bands = [_Band(colour) for colour in range(3)]
    ups = [model.synthesis.last, *reversed(model.synthesis.up)]
    for level, (down, up) in enumerate(
        zip([*model.analysis.down, model.analysis.last], ups, strict=True)
    ):
        bands = _split(bands, level, down, up)
    for module in model.modules():
        if isinstance(module, ResidualBottleneck):
            module.restore.get_parameter("weight").zero_()
            module.restore.get_parameter("bias").zero_()
    for transform in (model.analysis, model.synthesis):
        close(transform.shortcuts)
    _spread_scales(model, bands)


def _split(bands: list[_Band], level: int, down: nn.Module, up: nn.Module) -> list[_Band]:
    """Make `down` split `bands`, its inputs, and `up` join them; return the bands kept."""
    split_weight, split_bias = down.get_parameter("weight"), down.get_parameter("bias")
    join_weight, join_bias = up.get_parameter("weight"), up.get_parameter("bias")
    outputs, inputs = split_weight.shape[:2]
    bit = 2 ** (_LEVELS - 1 - level)
    split = sorted(
        (
            (_Band(band.colour, band.u + i * bit, band.v + j * bit), source, i, j)
            for source, band in enumerate(bands)
            for i in (0, 1)
            for j in (0, 1)
        ),
        key=lambda entry: entry[0].cost,
    )[:outputs]
    first, last = level == 0, level == _LEVELS - 1
    gain = _GAIN if last else 1.0
    join_weight[len(split) :] = 0
    for target, (band, source, i, j) in enumerate(split):
        taps = _taps(i, j)
        mix = torch.tensor(_COLOURS[band.colour]) if first else _one_hot(source, inputs)
        split_weight[target] = gain * mix.view(-1, 1, 1) * taps
        split_bias[target] = 0
        join_weight[target] = mix.view(-1, 1, 1) * taps / gain
    join_bias[: len(bands)] = 0
    if first:
        # Mid-grey becomes zero.
        split_bias[0] = -(3**0.5)
        join_bias.fill_(0.5)
    return [entry[0] for entry in split]


def _taps(i: int, j: int) -> Tensor:
    """Return the 5 x 5 kernel of sum (0) or difference (1), down (i) and across (j)."""
    taps = torch.zeros(5, 5)
    for row in (0, 1):
        for column in (0, 1):
            taps[2 + row, 2 + column] = 0.5 * (-1) ** (i * row + j * column)
    return taps


def _one_hot(index: int, size: int) -> Tensor:
    return F.one_hot(torch.tensor(index), size).float()


def _spread_scales(model: CCAModel, bands: list[_Band]) -> None:
    start = 0
    for size, head in zip(model.config.slice_sizes, model.context.scale_heads, strict=True):
        part = bands[start : start + size]
        spreads = [band.spread for band in part] + [1.0] * (size - len(part))
        head.get_parameter("4.bias").copy_(torch.tensor(spreads))
        start += size
