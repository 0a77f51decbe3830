"""The CCA model: forward for training and evaluation, compress and decompress for use.

Shapes: N batch, M latent channels, Z hyper-latent channels; h = H/16, w = W/16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pipeline.codec import coding
from pipeline.codec.architectures.cca.config import HYPER_STRIDE, CCAConfig
from pipeline.codec.architectures.cca.context import ContextModel, ContextOutput, HyperOutput
from pipeline.codec.architectures.cca.gains import Gained, Gains
from pipeline.codec.architectures.cca.latents import LatentCoder
from pipeline.codec.architectures.cca.transforms import (
    Analysis,
    Synthesis,
    hyper_analysis,
    hyper_synthesis,
)
from pipeline.codec.densities import (
    FactorizedDensity,
    gaussian_likelihood,
    round_straight_through,
)
from pipeline.codec.errors import CodecError
from pipeline.codec.fingerprint import fingerprint

T = TypeVar("T")


@dataclass(frozen=True)
class Noise:
    """The uniform noise of a training pass, in [-1/2, 1/2]; what is None is drawn.

    `y`, `aux_y` and `aux_factorized` are (N, M, h, w), `z` is (N, Z, h/4, w/4).
    """

    y: Tensor | None = None
    z: Tensor | None = None
    aux_y: Tensor | None = None
    aux_factorized: Tensor | None = None


@dataclass(frozen=True)
class CCAOutput:
    """What a pass gives. `x_hat` (N, 3, H, W) is not clamped; `likelihoods` has "y" and "z".

    `y`, `y_hat`, `means` and `scales` (as the heads give them, unbounded) are (N, M, h, w) of
    the padded picture; `hyper` is what the auxiliary model needs beside y. Where the model has
    gains, y and z are what is coded: with the gain, and y_hat before the inverse one.
    """

    x_hat: Tensor
    likelihoods: dict[str, Tensor]
    y: Tensor
    z: Tensor
    y_hat: Tensor
    means: Tensor
    scales: Tensor
    hyper: HyperOutput


class CCAModel(nn.Module):
    """A CCA image codec of the size that `config` says.

    With `config.rate_weights` it has gains for a range of rates (see `Gains`), of which `forward`
    and `compress` take one: a real number from 0 to K - 1, by default the middle.

    Every parameter gets a gradient from `forward`'s outputs, but the quantiles of
    `hyper_density`, which get theirs from `quantile_loss` alone.
    """

    def __init__(self, config: CCAConfig | None = None) -> None:
        super().__init__()
        self.config = config or CCAConfig()
        # Where the weights come from, as `save_model` was told.
        self.info: Mapping[str, Any] = {}
        # What was made of the weights, and the state of the weights it was made of.
        self._made_of: object = None
        self._made: dict[str, Any] = {}
        self.analysis = Analysis(self.config)
        self.synthesis = Synthesis(self.config)
        self.hyper_analysis = hyper_analysis(self.config)
        self.hyper_mean = hyper_synthesis(self.config)
        self.hyper_scale = hyper_synthesis(self.config)
        self.context = ContextModel(self.config)
        self.hyper_density = FactorizedDensity(self.config.hyper_latent_channels)
        self.gains = Gains(self.config) if self.config.rate_weights else None

    def forward(
        self, x: Tensor, noise: Noise | None = None, rate: Tensor | float | None = None
    ) -> CCAOutput:
        """Code pictures x, float32 (N, 3, H, W) in [0, 1], without making a stream.

        In training, likelihoods are taken on the variables plus `noise`; in evaluation on the
        rounded ones, and H and W may be anything from 1 up. `rate` is one for all pictures or, as
        a tensor (N,), one for each (not checked). Raises `CodecError` on other shapes, and on a
        rate outside of the model's range.
        """
        height, width = check_batch(x)
        gained = self._gained(rate, x)
        y = self.analysis(coding.pad(x, HYPER_STRIDE)) * gained.y
        z = self.hyper_analysis(y) * gained.z
        noise = noise or Noise()
        z_hat, z_likelihoods = self._code_hyper(z, noise)
        hyper = self.hyper(z_hat * gained.z_inverse)
        slices, y_likelihoods = code_slices(self.context, y, hyper, noise.y, self.training)
        y_hat = torch.cat(slices.decoded, dim=1)
        x_hat = self.synthesis(y_hat * gained.y_inverse)[..., :height, :width]
        return CCAOutput(
            x_hat=x_hat,
            likelihoods={"y": y_likelihoods, "z": z_likelihoods},
            y=y,
            z=z,
            y_hat=y_hat,
            means=torch.cat(slices.means, dim=1),
            scales=torch.cat(slices.scales, dim=1),
            hyper=hyper,
        )

    def _gained(self, rate: Tensor | float | None, x: Tensor) -> Gained:
        """Return what the latents of pictures x are multiplied by; see `forward`."""
        if isinstance(rate, Tensor):
            if self.gains is not None:
                # Not looked at, which would wait for the device.
                return Gained(*self.gains(rate))
            rate = float(rate[0])
        one = self.config.check_rate(rate)
        if self.gains is None or one is None:
            return Gained.none(x.device)
        return Gained(*self.gains(torch.full((x.shape[0],), one, device=x.device)))

    def hyper(self, z_hat: Tensor) -> HyperOutput:
        """Return what the quantised hyper-latent (N, Z, h/4, w/4) says about y."""
        return HyperOutput(self.hyper_mean(z_hat), self.hyper_scale(z_hat))

    def _code_hyper(self, z: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        medians = self.hyper_density.medians
        z_hat = round_straight_through(z - medians) + medians
        seen = add_noise(z, noise.z) if self.training else z_hat
        return z_hat, self.hyper_density(seen)

    def compress(self, x: Tensor, rate: float | None = None) -> bytes:
        """Return the `.cca` stream of picture x, floats (1, 3, H, W) in [0, 1].

        `rate` is a real number in `config.rates`, more for more bits; None takes the middle.
        Raises `CodecError` on other shapes and rates, and where the weights are not finite.
        """
        return coding.compress(self, coding.TensorSource(x), rate=rate)

    def decompress(self, data: bytes) -> Tensor:
        """Return the picture (1, 3, H, W) in [0, 1] of a `.cca` stream.

        Raises `CodecError` when `data` is not a whole stream of this model, and `MismatchError`
        when it is but decodes to other symbols than were encoded.
        """
        return coding.decompress(self, data)

    @property
    def fingerprint(self) -> str:
        """The hex digest of configuration and weights, by which streams name their model."""
        return self._of_weights("fingerprint", lambda: fingerprint(self.config, self))

    def coder(self) -> LatentCoder:
        """Return the entropy coder of the latents, with the weights of this moment."""
        return self._of_weights("coder", lambda: LatentCoder(self))

    def _of_weights(self, name: str, make: Callable[[], T]) -> T:
        """Return what `make` returned last, unless the weights have changed since."""
        state = tuple((id(p), p.device, p._version) for p in self.parameters())
        if self._made_of != state:
            self._made_of, self._made = state, {}
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made

    def __getstate__(self) -> dict[str, Any]:
        # What was made of the weights is made again: it can be neither copied nor sent.
        return {**self.__dict__, "_made_of": None, "_made": {}}

    def quantiles(self) -> list[nn.Parameter]:
        """Return the parameters that `quantile_loss` alone trains (at a rate of their own)."""
        return [self.hyper_density.quantiles]

    def quantile_loss(self) -> Tensor:
        """Return the quantiles' loss, a scalar; its gradient reaches the quantiles only."""
        return self.hyper_density.quantile_loss()


def code_slices(
    context: ContextModel, y: Tensor, hyper: HyperOutput, noise: Tensor | None, training: bool
) -> tuple[ContextOutput, Tensor]:
    """Run `context` over y (N, M, h, w); return its output and the likelihoods of y.

    In training the likelihoods are those of y + noise, in evaluation those of the rounded y;
    what later slices see is the straight-through rounding in both.
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


def add_noise(x: Tensor, noise: Tensor | None) -> Tensor:
    """Return x plus `noise`, or plus a fresh uniform sample in [-1/2, 1/2]."""
    if noise is None:
        return x + (torch.rand_like(x) - 0.5)
    if noise.shape != x.shape:
        raise CodecError(f"noise of shape {tuple(noise.shape)} given for {tuple(x.shape)}")
    return x + noise


def check_batch(x: Tensor) -> tuple[int, int]:
    """Return H and W of a batch of pictures (N, 3, H, W); other shapes raise `CodecError`."""
    if x.ndim != 4 or x.shape[1] != 3 or min(x.shape) < 1 or not x.is_floating_point():
        raise CodecError(
            f"expected pictures as floats (N, 3, H, W), not {tuple(x.shape)} of {x.dtype}"
        )
    return x.shape[2], x.shape[3]
