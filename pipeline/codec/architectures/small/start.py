"""Initialises a small model's weights as a transform codec, from which training continues.

The first layer splits 8 x 8 patches, in orthonormal opponent colours, by the cosine transform (as
JPEG does). The second layer splits each band once more by the Haar transform, over 2 x 2 patches.
The bands that are strongest in photographs are kept. The blocks in between start as the identity,
the synthesis inverts the analysis, and steps and scales follow high-rate theory. So the first pass
already gives a picture, and training learns what a transform codec cannot do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.codec.architectures.small.blocks import GatedBlock
from pipeline.codec.architectures.small.config import PATCH
from pipeline.codec.architectures.small.transforms import UNIT

if TYPE_CHECKING:
    from pipeline.codec.architectures.small.model import SmallModel

# Luminance, blue against yellow, red against green.
_COLOURS = (
    (0.57735, 0.57735, 0.57735),
    (-0.40825, -0.40825, 0.81650),
    (0.70711, -0.70711, 0.0),
)
# The strength of colours relative to luminance, and how strength falls with frequency.
_CHROMA = 0.16
_STRENGTH, _FALL = 4.0, 1.35
# The spread of the weights that are not set: not quite zero, so that they can learn.
_NOISE = 1e-3
# The share of torch's own initialisation that depthwise convolutions keep.
_SPREAD = 0.3
# The weight of 255^2 MSE in the loss, and the rate weight that a single-rate model starts at.
_DISTORTION = 0.05
_MIDDLE = 3.0


class _Band(NamedTuple):
    """A frequency of a colour, `u` down and `v` across, in 1/16 of a wave over a patch of 8."""

    strength: float
    colour: int
    u: int
    v: int

    @classmethod
    def of(cls, colour: int, u: int, v: int) -> _Band:
        strength = _STRENGTH * (_CHROMA if colour else 1.0)
        return cls(strength / (1 + math.hypot(u, v)) ** _FALL, colour, u, v)


@torch.no_grad()
def start_as_transform(model: SmallModel) -> None:
    """Set `model`'s outer layers, its steps and its scales, and weaken its blocks."""
    bands = _cosine(model.analysis.embed, model.synthesis.last, model.config.width)
    strengths = _haar(model.analysis.down, model.synthesis.up, bands)
    for vector, weight in zip(model.steps.y, model.config.rate_weights or (_MIDDLE,), strict=True):
        vector.fill_(math.log(_step(weight)))
    _scales(model, strengths)
    for block in model.modules():
        if isinstance(block, GatedBlock):
            block.depthwise.weight.mul_(_SPREAD)[:, 0, 1, 1] += 1
            nn.init.zeros_(block.depthwise.get_parameter("bias"))
            nn.init.zeros_(block.expand.get_parameter("bias"))


def _cosine(split: nn.Conv2d, join: nn.Conv2d, width: int) -> list[_Band]:
    """Make `split` and `join` the cosine transform and its inverse; return the bands kept."""
    numbers = range(PATCH)
    bands = [_Band.of(c, 2 * u, 2 * v) for c in range(3) for u in numbers for v in numbers]
    bands = sorted(bands, reverse=True)[:width]
    _faint(split)
    _faint(join)
    waves = _waves(PATCH)
    for i, band in enumerate(bands):
        wave = torch.outer(waves[band.u // 2], waves[band.v // 2])
        basis = torch.tensor(_COLOURS[band.colour])[:, None, None] * wave
        split.weight[i] = basis
        join.weight[:, i, 0, 0] = basis.flatten()
    return bands


def _haar(split: nn.Conv2d, join: nn.Conv2d, bands: list[_Band]) -> list[float]:
    """Make `split` and `join` a Haar transform of `bands`; return the strengths kept."""
    parts = [
        (_Band.of(band.colour, band.u + down, band.v + across), source, down, across)
        for source, band in enumerate(bands)
        for down in (0, 1)
        for across in (0, 1)
    ]
    parts = sorted(parts, reverse=True)[: split.out_channels]
    _faint(split)
    _faint(join)
    # A view: positions and channels before `spread`.
    joined = join.weight.view(2, 2, split.in_channels, split.out_channels)
    for i, (_, source, down, across) in enumerate(parts):
        for row in (0, 1):
            for column in (0, 1):
                tap = 0.5 * (-1) ** (down * row + across * column)
                split.weight[i, source, row, column] = tap
                joined[row, column, source, i] = tap
    return [band.strength for band, *_ in parts]


def _scales(model: SmallModel, strengths: list[float]) -> None:
    """Make the context model predict scales as strong as the bands of photographs are."""
    missing = model.config.latent_channels - len(strengths)
    logs = (UNIT * torch.tensor(strengths + [min(strengths)] * missing)).log()
    for i, log in enumerate(torch.split(logs, model.context.sizes)):
        model.context.slice_model(i).log_scale.get_parameter("bias").copy_(log)


def _step(rate_weight: float) -> float:
    """Return the best step of an orthonormal transform at `rate_weight`, in the latent's units.

    A step s costs s^2 / 12 of squared error per coefficient and -log2 s bits. With the mean over
    three colours and the weight w_D of 255^2 MSE, the sum is least at s^2 = 18 w_R / (w_D ln 2).
    """
    return UNIT / 255 * math.sqrt(18 / math.log(2) * rate_weight / _DISTORTION)


def _waves(size: int) -> Tensor:
    """Return the orthonormal cosine transform (size, size): its rows are waves."""
    places = 2 * torch.arange(size, dtype=torch.float64) + 1
    waves = torch.cos(math.pi / (2 * size) * places[None] * torch.arange(size)[:, None])
    waves[0] /= math.sqrt(2)
    return (waves * math.sqrt(2 / size)).float()


def _faint(layer: nn.Conv2d) -> None:
    layer.weight.normal_(std=_NOISE)
    if layer.bias is not None:
        layer.bias.zero_()
