"""The small model: its forward pass for training and evaluation, and the coder of its latents.

Shapes: N batch, M latent channels, Z hyper-latent channels, K rates; h = H/16, w = W/16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from pipeline.codec.architectures.small.coder import SmallCoder
from pipeline.codec.architectures.small.config import SmallConfig
from pipeline.codec.architectures.small.context import ContextModel, HyperAnalysis, HyperSynthesis
from pipeline.codec.architectures.small.rates import Rate, Steps, mixed
from pipeline.codec.architectures.small.transforms import Analysis, Synthesis
from pipeline.codec.coding import pad
from pipeline.codec.densities import (
    FactorizedDensity,
    gaussian_likelihood,
    round_straight_through,
)
from pipeline.codec.model import CodecOutput, HyperOutput, Model, add_noise, check_batch


class SmallModel(Model):
    """A small image codec for one rate or a range of rates, by default with the packaged sizes."""

    config: SmallConfig
    analysis: Analysis
    synthesis: Synthesis

    def __init__(self, config: SmallConfig | None = None) -> None:
        config = config or SmallConfig()
        super().__init__(config)
        self.analysis = Analysis(config)
        self.synthesis = Synthesis(config)
        self.hyper_analysis = HyperAnalysis(config)
        self.hyper_synthesis = HyperSynthesis(config)
        self.context = ContextModel(config)
        self.hyper_density = FactorizedDensity(config.hyper_latent_channels)
        self.steps = Steps(config)
        self.gains = None

    def forward(
        self,
        x: Tensor,
        noise: Mapping[str, Tensor] | None = None,
        rate: Tensor | float | None = None,
    ) -> CodecOutput:
        """Code pictures x, float32 (N, 3, H, W) in [0, 1]; see `Model.forward`."""
        height, width = check_batch(x)
        noise, at = noise or {}, self.at(rate, x)
        y = self.analysis(pad(x, self.config.unit), at)
        z_step = mixed(at, self.steps.z).exp()
        z = self.hyper_analysis(y, at) / z_step
        medians = self.hyper_density.medians
        z_hat = round_straight_through(z - medians) + medians
        z_seen = add_noise(z, noise.get("z")) if self.training else z_hat
        features = self.hyper_synthesis(z_hat * z_step, at)
        y_hat, likelihoods = self._code(y, features, at, noise.get("y"))
        return CodecOutput(
            x_hat=self.synthesis(y_hat, at)[..., :height, :width],
            likelihoods={"y": likelihoods, "z": self.hyper_density(z_seen)},
            y=y,
            hyper=HyperOutput(features, features),
        )

    def at(self, rate: Tensor | float | None, x: Tensor) -> Rate:
        """Return where the rates of pictures x lie between learned rates; see `Model.forward`."""
        if not isinstance(rate, Tensor):
            number = self.config.check_rate(rate) or 0.0
            rate = torch.full((len(x),), number, device=x.device)
        return Rate.of(rate.float(), self.config.vectors)

    def analyse(self, x: Tensor, rate: float | None = None) -> Tensor:
        """Return the latent y of pictures x; see `Model.analyse`."""
        y: Tensor = self.analysis(x, self.at(rate, x))
        return y

    def synthesise(self, y_hat: Tensor, rate: float | None = None) -> Tensor:
        """Return the pictures of latents; see `Model.synthesise`."""
        x_hat: Tensor = self.synthesis(y_hat, self.at(rate, y_hat))
        return x_hat

    def _code(
        self, y: Tensor, features: Tensor, at: Rate, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the decoded latent and the likelihoods of y, both (N, M, h, w)."""
        sizes = self.context.sizes
        parts = torch.split(y, sizes, dim=1)
        added = None if noise is None else torch.split(noise, sizes, dim=1)
        likelihoods: list[Tensor] = []

        def quantise(i: int, mean: Tensor, step: Tensor, scale: Tensor) -> Tensor:
            values = (parts[i] - mean) / step
            symbols = round_straight_through(values)
            seen = (
                add_noise(values, None if added is None else added[i]) if self.training else symbols
            )
            likelihoods.append(gaussian_likelihood(seen, scale))
            return symbols

        y_hat = self.context(features, mixed(at, self.steps.y), at, quantise)
        return y_hat, torch.cat(likelihoods, dim=1)

    def make_coder(self) -> SmallCoder:
        """Return the entropy coder of the latents, with the current weights."""
        return SmallCoder(self)

    def group_bits(self, bits: Tensor) -> dict[str, Tensor]:
        """Return the bits of each slice (N,), given the bits of y (N, M, h, w)."""
        parts = torch.split(bits, list(self.config.slice_sizes), dim=1)
        return {f"slice {i}": part.sum((1, 2, 3)) for i, part in enumerate(parts, 1)}

    def costly_parts(self) -> Iterator[nn.Module]:
        """Yield the transforms, the hyper-transforms and the models of all slices."""
        yield from (self.analysis, self.synthesis, self.hyper_analysis, self.hyper_synthesis)
        yield from self.context.slices
