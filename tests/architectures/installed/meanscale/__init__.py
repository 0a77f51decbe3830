"""The mean-scale hyperprior without context (Minnen et al. 2018), small: one file is all it takes.

Nothing of the project knows it but by its entry point. Strides are other ones than CCA's: a
latent has one position per 8 x 8 pixels, a hyper-latent one per 32 x 32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.codec.architectures import Architecture
from pipeline.codec.coding import pad
from pipeline.codec.config import Config, Shape, check_integer
from pipeline.codec.densities import (
    FactorizedDensity,
    gaussian_likelihood,
    round_straight_through,
)
from pipeline.codec.exact import exact_copy
from pipeline.codec.gains import Gained, Gains
from pipeline.codec.latents import Code, HyperpriorCoder
from pipeline.codec.layers import conv, deconv
from pipeline.codec.model import CodecOutput, HyperOutput, Model, add_noise, check_batch


@dataclass(frozen=True)
class MeanScaleConfig(Config):
    """Widths of a mean-scale hyperprior."""

    architecture: ClassVar[str] = "mean-scale"

    channels: int = 32
    latent_channels: int = 48
    hyper_latent_channels: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "latent_channels", "hyper_latent_channels"):
            check_integer(name, getattr(self, name), least=1)

    @property
    def latent_stride(self) -> int:
        return 8

    @property
    def unit(self) -> int:
        return 32

    @property
    def reach(self) -> int:
        # Three 5x5 convolutions of stride 2: 2 + 4 + 8 pixels; back, two latents.
        return 16

    @property
    def bytes_per_pixel(self) -> int:
        return 4 * 6 * self.channels // 4 + 64

    def noise_shapes(self, side: int) -> dict[str, Shape]:
        return {
            "y": (self.latent_channels, side // 8, side // 8),
            "z": (self.hyper_latent_channels, side // 32, side // 32),
        }


class MeanScaleCoder(HyperpriorCoder):
    """Codes all of y at once."""

    def __init__(self, model: MeanScale) -> None:
        super().__init__(model.density)
        self._hyper_analysis, self._gains = model.hyper_analysis, model.gains
        self._hyper = exact_copy(model.hyper_synthesis)

    def analyse_y(self, y: Tensor, rate: float | None) -> tuple[Tensor, Tensor]:
        gained = self._gained(rate)
        y = y * gained.y
        return y, self._hyper_analysis(y) * gained.z

    def decode_y(self, z_hat: Tensor, y: Tensor | None, code: Code, rate: float | None) -> Tensor:
        gained = self._gained(rate)
        mean, scale = self._hyper(z_hat * gained.z_inverse).chunk(2, dim=1)
        return code(y, mean, scale).float() * gained.y_inverse

    def _gained(self, rate: float | None) -> Gained:
        if self._gains is None or rate is None:
            return Gained.none(self.device)
        return self._gains.exact(rate)


class MeanScale(Model):
    """Means and scales of y from the hyper-latent alone."""

    config: MeanScaleConfig

    def __init__(self, config: MeanScaleConfig) -> None:
        super().__init__(config)
        n, m, z = config.channels, config.latent_channels, config.hyper_latent_channels
        self.analysis = nn.Sequential(
            conv(3, n, 5, stride=2), nn.LeakyReLU(0.1), conv(n, n, 5, stride=2),
            nn.LeakyReLU(0.1), conv(n, m, 5, stride=2),
        )  # fmt: skip
        self.synthesis = nn.Sequential(
            deconv(m, n, 5, stride=2), nn.LeakyReLU(0.1), deconv(n, n, 5, stride=2),
            nn.LeakyReLU(0.1), deconv(n, 3, 5, stride=2),
        )  # fmt: skip
        self.hyper_analysis = nn.Sequential(
            conv(m, n, 3), nn.ReLU(), conv(n, n, 5, stride=2), nn.ReLU(), conv(n, z, 5, stride=2)
        )
        self.hyper_synthesis = nn.Sequential(
            deconv(z, n, 5, stride=2), nn.ReLU(), deconv(n, n, 5, stride=2), nn.ReLU(),
            nn.Conv2d(n, 2 * m, 3, padding=1, groups=2),
        )  # fmt: skip
        self.density = FactorizedDensity(z)
        self.gains = Gains(config.rate_weights, m, z) if config.rate_weights else None

    def forward(
        self,
        x: Tensor,
        noise: Mapping[str, Tensor] | None = None,
        rate: Tensor | float | None = None,
    ) -> CodecOutput:
        height, width = check_batch(x)
        gained, noise = self.gained(rate, x), noise or {}
        y = self.analysis(pad(x, self.config.unit)) * gained.y
        z = self.hyper_analysis(y) * gained.z
        z_hat = round_straight_through(z - self.density.medians) + self.density.medians
        z_seen = add_noise(z, noise.get("z")) if self.training else z_hat
        mean, scale = self.hyper_synthesis(z_hat * gained.z_inverse).chunk(2, dim=1)
        symbols = round_straight_through(y - mean)
        y_seen = add_noise(y, noise.get("y")) - mean if self.training else symbols
        x_hat = self.synthesis((symbols + mean) * gained.y_inverse)
        return CodecOutput(
            x_hat=x_hat[..., :height, :width],
            likelihoods={"y": gaussian_likelihood(y_seen, scale), "z": self.density(z_seen)},
            y=y,
            hyper=HyperOutput(mean, scale),
        )

    def make_coder(self) -> MeanScaleCoder:
        return MeanScaleCoder(self)

    def group_bits(self, bits: Tensor) -> dict[str, Tensor]:
        return {"latent": bits.sum((1, 2, 3))}

    def costly_parts(self) -> Iterator[nn.Module]:
        yield from (self.analysis, self.synthesis, self.hyper_analysis, self.hyper_synthesis)


@torch.no_grad()
def start_bright(model: MeanScale) -> None:
    """Start with grey pictures, not black ones."""
    model.synthesis[-1].bias.fill_(0.5)


ARCHITECTURE = Architecture(
    name="mean-scale",
    title="Mean-scale hyperprior",
    config=MeanScaleConfig,
    model=MeanScale,
    presets={"micro": MeanScaleConfig(channels=8, latent_channels=12, hyper_latent_channels=4)},
    starts={"bright": start_bright},
)
