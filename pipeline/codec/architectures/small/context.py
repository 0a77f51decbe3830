"""The entropy model of y: the hyper networks and the context model over slices.

For each slice, one network predicts means and scales together, from the hyper-decoder's features
and the earlier slices. A second, smaller one estimates the rounding error (latent residual
prediction).

y, means and decoded slices are in the transforms' units at every rate; a symbol counts quantisation
steps of its channel at the rate. So the networks see values of the same magnitude at all rates.
Only the steps and the vectors of each `RateAffine` change with the rate.

Shapes: N batch, K rates, M latent channels, C_i channels of slice i, Z hyper-latent channels,
F features; h = H/16, w = W/16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.codec.architectures.small.blocks import Exp, GatedBlock, Pointwise, set_zero, spread
from pipeline.codec.architectures.small.config import SmallConfig
from pipeline.codec.architectures.small.rates import Rate

# Given (slice, mean, step, scale), (N, C_i, h, w) each, return the slice's symbols:
# round((y - mean) / step). The scale is that of the symbols.
Quantise = Callable[[int, Tensor, Tensor, Tensor], Tensor]

# Beyond this magnitude, a symbol says nothing about its rounding error.
_SEEN = 4.0


class HyperAnalysis(nn.Module):
    """h_a: (N, M, h, w) -> (N, Z, h/4, w/4)."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        width, rates = config.hyper_channels, config.vectors
        self.enter = Pointwise(config.latent_channels, width)
        self.first = GatedBlock(width, width, rates)
        self.down = nn.Conv2d(width, width, 2, stride=2)
        self.second = GatedBlock(width, width, rates)
        self.leave = nn.Conv2d(width, config.hyper_latent_channels, 2, stride=2)

    def forward(self, y: Tensor, rate: Rate) -> Tensor:
        """Return the hyper-latent z."""
        h = self.down(self.first(self.enter(y), rate))
        z: Tensor = self.leave(self.second(h, rate))
        return z


class HyperSynthesis(nn.Module):
    """h_s: (N, Z, h/4, w/4) -> features (N, F, h, w)."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        width, rates = config.hyper_channels, config.vectors
        self.enter = Pointwise(config.hyper_latent_channels, 4 * width)
        self.first = GatedBlock(width, width, rates)
        self.up = Pointwise(width, 4 * width)
        self.second = GatedBlock(width, width, rates)

    def forward(self, z_hat: Tensor, rate: Rate) -> Tensor:
        """Return the features that the slices are predicted from."""
        h = self.first(spread(self.enter(z_hat), 2), rate)
        features: Tensor = self.second(spread(self.up(h), 2), rate)
        return features


class SliceModel(nn.Module):
    """Predicts the means, scales and corrections of one slice."""

    def __init__(self, inputs: int, size: int, config: SmallConfig) -> None:
        super().__init__()
        width, rates = config.context_channels, config.vectors
        self.enter = Pointwise(inputs, width)
        self.blocks = nn.ModuleList(
            GatedBlock(width, width, rates) for _ in range(config.context_blocks)
        )
        self.mean = Pointwise(width, size)
        self.log_scale = Pointwise(width, size)
        self.correct = Pointwise(width + size, width)
        self.correction = Pointwise(width // 2, size)
        self.tanh = nn.Tanh()
        for layer in (self.mean, self.log_scale, self.correction):
            set_zero(layer)

    def forward(self, x: Tensor, rate: Rate) -> Tensor:
        """Map the features and earlier slices (N, inputs, h, w) to the support (N, width, h, w)."""
        h: Tensor = self.enter(x)
        for block in self.blocks:
            h = block(h, rate)
        return h

    def corrected(self, support: Tensor, symbols: Tensor) -> Tensor:
        """Return symbols (N, C_i, h, w) plus the estimated rounding error, under half a step."""
        seen = torch.cat([support, symbols.clamp(-_SEEN, _SEEN)], dim=1)
        first, second = self.correct(seen).chunk(2, dim=1)
        lost: Tensor = 0.5 * self.tanh(self.correction(first * second))
        return symbols + lost


class ContextModel(nn.Module):
    """The models of all slices, in the order of coding."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.sizes = list(config.slice_sizes)
        self.slices = nn.ModuleList(
            SliceModel(config.hyper_channels + sum(self.sizes[:i]), size, config)
            for i, size in enumerate(self.sizes)
        )
        self.exp = Exp()

    def slice_model(self, number: int) -> SliceModel:
        """Return the model of a slice, numbered from 0."""
        model = self.slices[number]
        assert isinstance(model, SliceModel)
        return model

    def forward(
        self, features: Tensor, log_steps: Tensor, rate: Rate, quantise: Quantise
    ) -> Tensor:
        """Predict the slices in order; return the decoded latent (N, M, h, w).

        `quantise` supplies each slice's symbols once the slice is predicted; training, encoder and
        decoder differ only in it. `log_steps` (N, M, 1, 1) are the logarithms of y's steps.
        """
        decoded: list[Tensor] = []
        for i, log_step in enumerate(torch.split(log_steps, self.sizes, dim=1)):
            model = self.slice_model(i)
            support = model(torch.cat([features, *decoded], dim=1), rate)
            mean, step = model.mean(support), self.exp(log_step)
            scale = self.exp(model.log_scale(support) - log_step)
            symbols = quantise(i, mean, step, scale)
            decoded.append(model.corrected(support, symbols) * step + mean)
        return torch.cat(decoded, dim=1)
