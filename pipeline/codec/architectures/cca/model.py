"""The CCA model: its forward pass for training and evaluation, and the coder of its latents.

Shapes: N batch, M latent channels, Z hyper-latent channels; h = H/16, w = W/16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.codec.architectures.cca.coder import CCACoder
from pipeline.codec.architectures.cca.config import CCAConfig
from pipeline.codec.architectures.cca.context import ContextModel, ContextOutput
from pipeline.codec.architectures.cca.transforms import (
    Analysis,
    Synthesis,
    hyper_analysis,
    hyper_synthesis,
)
from pipeline.codec.coding import pad
from pipeline.codec.densities import (
    FactorizedDensity,
    gaussian_likelihood,
    round_straight_through,
)
from pipeline.codec.gains import Gains
from pipeline.codec.model import CodecOutput, HyperOutput, Model, add_noise, check_batch


@dataclass(frozen=True, kw_only=True)
class CCAOutput(CodecOutput):
    """The output of a CCA model: that of every model, and the tensors of its entropy model.

    `z` is (N, Z, h/4, w/4); `y_hat`, `means` and `scales` (as the heads give them, unbounded) are
    (N, M, h, w), all of the padded picture. In a model with gains, `z` is taken after its gain and
    `y_hat` before the inverse gain.
    """

    z: Tensor
    y_hat: Tensor
    means: Tensor
    scales: Tensor


class CCAModel(Model):
    """A CCA image codec with the sizes of `config`, by default the published ones."""

    config: CCAConfig
    analysis: Analysis
    synthesis: Synthesis

    def __init__(self, config: CCAConfig | None = None) -> None:
        super().__init__(config or CCAConfig())
        self.analysis = Analysis(self.config)
        self.synthesis = Synthesis(self.config)
        self.hyper_analysis = hyper_analysis(self.config)
        self.hyper_mean = hyper_synthesis(self.config)
        self.hyper_scale = hyper_synthesis(self.config)
        self.context = ContextModel(self.config)
        self.hyper_density = FactorizedDensity(self.config.hyper_latent_channels)
        self.gains = _gains(self.config)

    def forward(
        self,
        x: Tensor,
        noise: Mapping[str, Tensor] | None = None,
        rate: Tensor | float | None = None,
    ) -> CCAOutput:
        """Code pictures x, float32 (N, 3, H, W) in [0, 1]; see `Model.forward`."""
        height, width = check_batch(x)
        gained = self.gained(rate, x)
        y = self.analysis(pad(x, self.config.unit)) * gained.y
        z = self.hyper_analysis(y) * gained.z
        noise = noise or {}
        z_hat, z_likelihoods = self._code_hyper(z, noise.get("z"))
        hyper = self.hyper(z_hat * gained.z_inverse)
        slices, y_likelihoods = code_slices(self.context, y, hyper, noise.get("y"), self.training)
        y_hat = torch.cat(slices.decoded, dim=1)
        x_hat = self.synthesis(y_hat * gained.y_inverse)[..., :height, :width]
        return CCAOutput(
            x_hat=x_hat,
            likelihoods={"y": y_likelihoods, "z": z_likelihoods},
            y=y,
            hyper=hyper,
            z=z,
            y_hat=y_hat,
            means=torch.cat(slices.means, dim=1),
            scales=torch.cat(slices.scales, dim=1),
        )

    def make_coder(self) -> CCACoder:
        """Return the entropy coder of the latents, with the current weights."""
        hyper = self.hyper_mean, self.hyper_scale
        return CCACoder(self.hyper_analysis, self.hyper_density, self.gains, hyper, self.context)

    def group_bits(self, bits: Tensor) -> dict[str, Tensor]:
        """Return the bits of each slice (N,), given the bits of y (N, M, h, w)."""
        parts = torch.split(bits, list(self.config.slice_sizes), dim=1)
        return {f"slice {i}": part.sum((1, 2, 3)) for i, part in enumerate(parts, 1)}

    def costly_parts(self) -> Iterator[nn.Module]:
        """Yield the transforms, hyper-transforms, supports and heads."""
        yield from (self.analysis, self.synthesis, self.hyper_analysis)
        yield from (self.hyper_mean, self.hyper_scale)
        yield from self.context.costly_parts()

    def stacks(self) -> Iterator[nn.Module]:
        """Yield the sequences of blocks. There are seven kinds: all supports have the same."""
        yield from (*self.analysis.blocks, *self.synthesis.blocks, *self.context.stacks())

    def hyper(self, z_hat: Tensor) -> HyperOutput:
        """Run the hyper-decoders on the quantised hyper-latent (N, Z, h/4, w/4)."""
        return HyperOutput(self.hyper_mean(z_hat), self.hyper_scale(z_hat))

    def _code_hyper(self, z: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        medians = self.hyper_density.medians
        z_hat = round_straight_through(z - medians) + medians
        seen = add_noise(z, noise) if self.training else z_hat
        return z_hat, self.hyper_density(seen)


def code_slices(
    context: ContextModel, y: Tensor, hyper: HyperOutput, noise: Tensor | None, training: bool
) -> tuple[ContextOutput, Tensor]:
    """Run `context` over y (N, M, h, w); return its output and the likelihoods of y.

    The likelihoods are of y + noise in training, and of the rounded y in evaluation. Later slices
    see the straight-through rounding in both.
    """
    sizes = list(context.sizes)
    parts = torch.split(y, sizes, dim=1)
    noisy = torch.split(add_noise(y, noise), sizes, dim=1) if training else parts
    likelihoods: list[Tensor] = []

    def quantise(i: int, mean: Tensor, scale: Tensor) -> Tensor:
        symbols = round_straight_through(parts[i] - mean)
        residual = noisy[i] - mean if training else symbols
        likelihoods.append(gaussian_likelihood(residual, scale))
        return symbols + mean

    output = context(hyper, quantise)
    return output, torch.cat(likelihoods, dim=1)


def _gains(config: CCAConfig) -> Gains | None:
    if not config.rate_weights:
        return None
    return Gains(config.rate_weights, config.latent_channels, config.hyper_latent_channels)
