"""What every model has in common: streams, fingerprint, coder, and what training needs.

Shapes: N batch, M latent channels, h and w the positions of the latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.codec import coding
from pipeline.codec.config import Config
from pipeline.codec.densities import FactorizedDensity
from pipeline.codec.errors import CodecError
from pipeline.codec.exact import takes_scale
from pipeline.codec.exact_code import only_exact
from pipeline.codec.fingerprint import fingerprint
from pipeline.codec.gains import Gained, Gains
from pipeline.codec.info import ModelInfo
from pipeline.codec.interface import LatentCoder
from pipeline.codec.scaled_layers import give_scale, scale_of
from pipeline.codec.scales import Scale, Scales

T = TypeVar("T")

# Models whose decoder does only what comes out equal on any device: the code, the config, and
# whether there are scales.
_watched: set[tuple[type, Config, bool]] = set()


class Noise(dict[str, Tensor]):
    """The uniform noise of a training pass by name, in [-1/2, 1/2); what is missing is drawn.

    Names and shapes are those of `Config.noise_shapes`, with a batch dimension in front.
    """


@dataclass(frozen=True)
class HyperOutput:
    """The prediction of y from the hyper-latent alone: `mean` and `scale`, (N, M, h, w)."""

    mean: Tensor
    scale: Tensor


@dataclass(frozen=True, kw_only=True)
class CodecOutput:
    """The output of a pass. `x_hat` (N, 3, H, W) is not clamped.

    `likelihoods` has "y", (N, M, h, w) of the padded picture, and one entry for each latent
    that is coded beside it. `y` is the coded latent, multiplied by the gain if the model has
    gains; an auxiliary model needs `y` and `hyper`.
    """

    x_hat: Tensor
    likelihoods: dict[str, Tensor]
    y: Tensor
    hyper: HyperOutput


class Trained(nn.Module):
    """The properties of models and auxiliary models that training asks for."""

    def quantiles(self) -> list[nn.Parameter]:
        """Return the parameters that only `quantile_loss` trains, at their own learning rate."""
        return [density.quantiles for density in self._densities()]

    def quantile_loss(self) -> Tensor:
        """Return the quantiles' loss, a scalar; only the quantiles get a gradient from it."""
        return torch.stack([density.quantile_loss() for density in self._densities()]).sum()

    def costly_parts(self) -> Iterator[nn.Module]:
        """Yield the modules in which nearly all of the arithmetic is done; each is called whole.

        Training may run them in bf16 and recompute their activations. What lies between them
        (means, scales, rounding, likelihoods) stays in float32.
        """
        yield from ()

    def stacks(self) -> Iterator[nn.Module]:
        """Yield the sequences of small operations that are worth compiling, few kinds of them."""
        yield from ()

    def _densities(self) -> list[FactorizedDensity]:
        return [module for module in self.modules() if isinstance(module, FactorizedDensity)]


class Model(Trained, ABC):
    """An image codec of the size that `config` says.

    With `config.rate_weights` it has gains for a range of rates (see `Gains`), of which `forward`
    and `compress` take one: a real number from 0 to K - 1, by default the middle.

    Every parameter gets a gradient from the outputs of `forward`, except the quantiles, which get
    theirs only from `quantile_loss`.
    """

    config: Config
    analysis: nn.Module
    synthesis: nn.Module
    gains: Gains | None

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        # Where the weights come from, as `save_model` was told.
        self.info = ModelInfo()
        # What was made of the weights, and the state of the weights it was made of.
        self._made_of: object = None
        self._made: dict[str, Any] = {}

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        noise: Mapping[str, Tensor] | None = None,
        rate: Tensor | float | None = None,
    ) -> CodecOutput:
        """Code pictures x, float32 (N, 3, H, W) in [0, 1], without making a stream.

        In training, likelihoods are taken on the variables plus `noise`; in evaluation on the
        rounded ones, and H and W may be anything from 1 up. `rate` is one for all pictures or, as
        a tensor (N,), one for each (not checked). Raises `CodecError` on other shapes, and on a
        rate outside of the model's range.
        """

    def analyse(self, x: Tensor, rate: float | None = None) -> Tensor:
        """Return the latent y of pictures x, (N, 3, H, W) in [0, 1], whole units, for `rate`."""
        y: Tensor = self.analysis(x)
        return y

    def synthesise(self, y_hat: Tensor, rate: float | None = None) -> Tensor:
        """Return the pictures (N, 3, H, W), not clamped, of latents that a coder gave."""
        x_hat: Tensor = self.synthesis(y_hat)
        return x_hat

    @abstractmethod
    def make_coder(self) -> LatentCoder:
        """Return a coder of the latents with the weights of this moment."""

    @abstractmethod
    def group_bits(self, bits: Tensor) -> dict[str, Tensor]:
        """Return the bits of each group of latents that is coded at once, (N,) each, by its name.

        `bits` (N, M, h, w) are those of y. The order is that of coding.
        """

    def compress(self, x: Tensor, rate: float | None = None) -> bytes:
        """Return the `.cca` stream of picture x, floats (1, 3, H, W) in [0, 1].

        `rate` is a real number in `config.rates`; a higher rate takes more bits; None: the middle.
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
        return self._of_weights("fingerprint", lambda: fingerprint(self.config, self, self.scales))

    @property
    def scales(self) -> dict[str, Scale]:
        """The scales of layers by name, with which the entropy model's sums are exact in float32.

        Empty: it computes in float64. They belong to the model as its weights do.
        """
        found = ((name, scale_of(layer)) for name, layer in self.named_modules())
        return {name: scale for name, scale in found if scale is not None}

    def set_scales(self, scales: Scales) -> None:
        """Give layers scales by name, and take them from all others; see `calibrate`.

        Raises `CodecError` when a name is none of a layer that can have a scale.
        """
        layers = dict(self.named_modules())
        for name in scales:
            if name not in layers or not takes_scale(layers[name]):
                raise CodecError(f"the model has no layer {name} that can have a scale")
        for name, layer in layers.items():
            give_scale(layer, scales.get(name))
        self._made_of = None

    def coder(self) -> LatentCoder:
        """Return the entropy coder of the latents, with the weights of this moment."""
        return self._of_weights("coder", self._watched_coder)

    def gained(self, rate: Tensor | float | None, x: Tensor) -> Gained:
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

    def _watched_coder(self) -> LatentCoder:
        """Make a coder; if it is the first of this config, decode nothing under watch.

        Decoding a tile of one unit whose words are all missing runs what the decoder runs.
        """
        coder, mark = self.make_coder(), (type(self), self.config, bool(self.scales))
        if mark not in _watched:
            with only_exact(f"the entropy model of {type(self).__name__}"):
                nothing = np.empty(0, np.uint32)
                coder.decode(nothing, 1, 1, partial=True, rate=self.config.check_rate(None))
            _watched.add(mark)
        return coder

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


@dataclass(frozen=True)
class AuxiliaryOutput:
    """Likelihoods of y, (N, M, h, w): by the withheld context, and by the density (if asked)."""

    likelihoods_y: Tensor
    likelihoods_factorized: Tensor | None


class AuxiliaryModel(Trained, ABC):
    """An entropy model that sees less context than the model's own, to show what context is worth.

    Only training uses it, for the causal context adjustment term of the loss. It detaches
    nothing and reverses nothing; the caller does. `density` gets a gradient only
    through `likelihoods_factorized`, its quantiles only through `quantile_loss`.
    """

    density: FactorizedDensity

    @abstractmethod
    def forward(
        self,
        y: Tensor,
        hyper: HyperOutput,
        noise: Mapping[str, Tensor] | None = None,
        factorized: bool = True,
    ) -> AuxiliaryOutput:
        """Return the likelihoods of the unquantised y (N, M, h, w), given the hyper-decoders'.

        `factorized=False` leaves the factorised density out (its likelihoods are then None).
        """


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
