"""The base of all models: streams, fingerprint, coder, and the interface for training.

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

# Models whose decoder was checked to use exact operations only: their class, their config, and
# whether they have scales.
_watched: set[tuple[type, Config, bool]] = set()


class Noise(dict[str, Tensor]):
    """The uniform noise of a training pass by name, in [-1/2, 1/2); missing entries are drawn.

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
        """Yield the modules that do nearly all of the arithmetic; each is called as a whole.

        Training may run them in bf16 and recompute their activations. The code between them
        (means, scales, rounding, likelihoods) stays in float32.
        """
        yield from ()

    def stacks(self) -> Iterator[nn.Module]:
        """Yield the sequences of small operations that are worth compiling, of few kinds."""
        yield from ()

    def _densities(self) -> list[FactorizedDensity]:
        return [module for module in self.modules() if isinstance(module, FactorizedDensity)]


class Model(Trained, ABC):
    """An image codec with the sizes of `config`.

    With `config.rate_weights` it has gains for a range of rates (see `Gains`). `forward` and
    `compress` take a rate, a real number from 0 to K - 1, by default the middle.

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
        # Where the weights come from; `save_model` writes it into the file.
        self.info = ModelInfo()
        # Values computed from the weights, and the state of the weights at that time.
        self._cached_for: object = None
        self._cached: dict[str, Any] = {}

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        noise: Mapping[str, Tensor] | None = None,
        rate: Tensor | float | None = None,
    ) -> CodecOutput:
        """Code pictures x, float32 (N, 3, H, W) in [0, 1], without making a stream.

        In training, likelihoods are of the latents plus `noise`. In evaluation they are of the
        rounded latents, and H and W may be anything from 1 up. `rate` is a number for all pictures,
        or a tensor (N,) of one for each, which is not checked. Raises `CodecError` on other shapes,
        and on a rate outside of the model's range.
        """

    def analyse(self, x: Tensor, rate: float | None = None) -> Tensor:
        """Return the latent y of pictures x (N, 3, H, W) in [0, 1], of whole units, at `rate`."""
        y: Tensor = self.analysis(x)
        return y

    def synthesise(self, y_hat: Tensor, rate: float | None = None) -> Tensor:
        """Return the pictures (N, 3, H, W), not clamped, of decoded latents."""
        x_hat: Tensor = self.synthesis(y_hat)
        return x_hat

    @abstractmethod
    def make_coder(self) -> LatentCoder:
        """Return a coder of the latents with the current weights."""

    @abstractmethod
    def group_bits(self, bits: Tensor) -> dict[str, Tensor]:
        """Return the bits (N,) of each group of latents that is coded at once, by its name.

        `bits` (N, M, h, w) are the bits of y. Groups are in the order of coding.
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
        when it decodes to other symbols than were encoded.
        """
        return coding.decompress(self, data)

    @property
    def fingerprint(self) -> str:
        """The hex digest of configuration and weights, by which streams name their model."""
        return self._of_weights("fingerprint", lambda: fingerprint(self.config, self, self.scales))

    @property
    def scales(self) -> dict[str, Scale]:
        """The scales of layers by name, which make the entropy model's sums exact in float32.

        Without scales it computes in float64. Scales belong to the model as its weights do.
        """
        scales = ((name, scale_of(layer)) for name, layer in self.named_modules())
        return {name: scale for name, scale in scales if scale is not None}

    def set_scales(self, scales: Scales) -> None:
        """Set the scales of layers by name, and remove those of all others; see `calibrate`.

        Raises `CodecError` when a name does not belong to a layer that can have a scale.
        """
        layers = dict(self.named_modules())
        for name in scales:
            if name not in layers or not takes_scale(layers[name]):
                raise CodecError(f"the model has no layer {name} that can have a scale")
        for name, layer in layers.items():
            give_scale(layer, scales.get(name))
        self._cached_for = None

    def coder(self) -> LatentCoder:
        """Return the entropy coder of the latents, with the current weights."""
        return self._of_weights("coder", self._watched_coder)

    def gained(self, rate: Tensor | float | None, x: Tensor) -> Gained:
        """Return the gains of the latents of pictures x; `rate` is as in `forward`."""
        if isinstance(rate, Tensor):
            if self.gains is not None:
                # Not checked: reading the values would wait for the device.
                return Gained(*self.gains(rate))
            rate = float(rate[0])
        number = self.config.check_rate(rate)
        if self.gains is None or number is None:
            return Gained.none(x.device)
        return Gained(*self.gains(torch.full((x.shape[0],), number, device=x.device)))

    def _watched_coder(self) -> LatentCoder:
        """Make a coder; check the first one of each config for operations that are not exact.

        Decoding a tile of one unit without any words runs all code of the decoder.
        """
        coder, mark = self.make_coder(), (type(self), self.config, bool(self.scales))
        if mark not in _watched:
            with only_exact(f"the entropy model of {type(self).__name__}"):
                nothing = np.empty(0, np.uint32)
                coder.decode(nothing, 1, 1, partial=True, rate=self.config.check_rate(None))
            _watched.add(mark)
        return coder

    def _of_weights(self, name: str, make: Callable[[], T]) -> T:
        """Return the cached result of `make`, or a new one if the weights have changed since."""
        state = tuple((id(p), p.device, p._version) for p in self.parameters())
        if self._cached_for != state:
            self._cached_for, self._cached = state, {}
        if name not in self._cached:
            self._cached[name] = make()
        cached: T = self._cached[name]
        return cached

    def __getstate__(self) -> dict[str, Any]:
        # Cached values are computed again: they can be neither copied nor pickled.
        return {**self.__dict__, "_cached_for": None, "_cached": {}}


@dataclass(frozen=True)
class AuxiliaryOutput:
    """Likelihoods of y (N, M, h, w): by withheld context; by the factorised density, or None."""

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
        """Return the likelihoods of the unquantised y (N, M, h, w), given the output `hyper`.

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
