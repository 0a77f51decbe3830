"""The networks of `pipeline.codec.architectures.small` in numpy; weights have the same names.

Shapes: arrays are (h, w, C), channels last; M latent channels, Z hyper-latent channels, K rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.architectures.small.config import PATCH, SmallConfig
from pipeline.codec.light import exact, scaled
from pipeline.codec.light.form import Weights
from pipeline.codec.scales import Scale, Scales

Floats = npt.NDArray[Any]
# Given (slice, mean, step, scale), return the slice's symbols; all (h, w, C_i).
Quantise = Callable[[int, Floats, Floats, Floats], Floats]

_UNIT, _SEEN, _EPS = np.float32(10.0), 4.0, 1e-6


@dataclass(frozen=True)
class Rate:
    """The place of a rate between the K learned ones: `share` of the way from lower to upper."""

    lower: int
    upper: int
    share: float

    @classmethod
    def of(cls, rate: float | None, vectors: int) -> Rate:
        """Return the place of `rate`, from 0 to `vectors` - 1; None means 0."""
        number = rate or 0.0
        lower = min(max(int(number), 0), max(0, vectors - 2))
        return cls(lower, min(lower + 1, vectors - 1), number - lower)

    def mixed(self, vectors: Floats) -> Floats:
        """Interpolate the vectors (K, C) at this rate: (C,), in their own precision."""
        share = vectors.dtype.type(self.share)
        vector: Floats = vectors[self.lower] * (1 - share) + vectors[self.upper] * share
        return vector


class _Matrix:
    """A pointwise layer in float32, or any layer whose inputs are flattened into one row."""

    def __init__(self, weight: Floats, bias: Floats) -> None:
        self.weight, self.bias = weight.reshape(len(weight), -1).T, bias

    def __call__(self, x: Floats) -> Floats:
        return exact.multiplied(x, self.weight, self.bias)


class _Taps:
    """A depthwise 3x3 convolution in float32."""

    def __init__(self, weight: Floats, bias: Floats) -> None:
        self.weight, self.bias = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0)), bias

    def __call__(self, x: Floats) -> Floats:
        out: Floats = exact.depthwise(x, self.weight)
        out += self.bias
        return out


class _Norm:
    """Layer normalisation over channels in float32."""

    def __init__(self, weight: Floats, bias: Floats, eps: float) -> None:
        self.weight, self.bias, self.eps = weight, bias, np.float32(eps)

    def __call__(self, x: Floats) -> Floats:
        centred: Floats = x - x.mean(-1, keepdims=True)
        variance = np.einsum("hwc,hwc->hw", centred, centred)[..., None] / np.float32(x.shape[-1])
        centred /= np.sqrt(variance + self.eps)
        centred *= self.weight
        centred += self.bias
        return centred


@dataclass(frozen=True)
class Kind:
    """The layers that networks are built of, and the precision of all other weights."""

    matrix: Callable[..., Callable[[Floats], Floats]]
    taps: Callable[..., Callable[[Floats], Floats]]
    norm: Callable[..., Callable[[Floats], Floats]]
    dtype: type[np.floating[Any]]
    # Elementwise functions; the exact ones are table look-ups.
    exp: Callable[[Floats], Floats]
    tanh: Callable[[Floats], Floats]
    # Whether layers take a scale, by their name.
    scaled: bool = False


FLOAT = Kind(_Matrix, _Taps, _Norm, np.float32, np.exp, np.tanh)
EXACT = Kind(exact.ExactMatrix, exact.ExactTaps, exact.ExactNorm, np.float64, exact.exp, exact.tanh)
SCALED = Kind(
    scaled.ScaledMatrix, scaled.ScaledTaps, scaled.ScaledNorm, np.float32, scaled.exp, scaled.tanh,
    scaled=True,
)  # fmt: skip


class _Named:
    """Makes layers of one kind, by the prefix of their weights' names."""

    def __init__(self, weights: Weights, kind: Kind, scales: Scales | None = None) -> None:
        self.weights, self.kind, self.scales = weights, kind, scales or {}

    @classmethod
    def exact(cls, weights: Weights, scales: Scales) -> _Named:
        """Make exact layers: in float32 if there are scales, else in float64."""
        return cls(weights, SCALED if scales else EXACT, scales)

    def array(self, name: str) -> Floats:
        return self.weights[name].astype(self.kind.dtype)

    def both(self, name: str) -> tuple[Floats, Floats]:
        return self.array(f"{name}.weight"), self.array(f"{name}.bias")

    def matrix(self, name: str) -> Callable[[Floats], Floats]:
        return self.kind.matrix(*self.both(name), *self.scale(name))

    def taps(self, name: str) -> Callable[[Floats], Floats]:
        return self.kind.taps(*self.both(name), *self.scale(name))

    def norm(self, name: str) -> Callable[[Floats], Floats]:
        return self.kind.norm(*self.both(name), _EPS, *self.scale(name))

    def scale(self, name: str) -> tuple[Scale, ...]:
        return (self.scales[name],) if self.kind.scaled else ()

    def block(self, name: str) -> _Block:
        return _Block(self, name)

    def blocks(self, name: str, count: int) -> list[_Block]:
        return [self.block(f"{name}.{i}") for i in range(count)]


class _Block:
    """`GatedBlock`: x + project(gate(expand(depthwise(affine(norm(x))))))."""

    def __init__(self, named: _Named, name: str) -> None:
        self.norm = named.norm(f"{name}.norm")
        self.scale, self.shift = (
            named.array(f"{name}.affine.{part}") for part in ("scale", "shift")
        )
        self.depthwise = named.taps(f"{name}.depthwise")
        self.expand, self.project = named.matrix(f"{name}.expand"), named.matrix(f"{name}.project")

    def __call__(self, x: Floats, at: Rate) -> Floats:
        h = self.norm(x) * (at.mixed(self.scale) + 1) + at.mixed(self.shift)
        out: Floats = x + self.project(_gated(self.expand(self.depthwise(h))))
        return out


def _gated(x: Floats) -> Floats:
    half = x.shape[-1] // 2
    gated: Floats = x[..., :half] * x[..., half:]
    return gated


def _spread(x: Floats, factor: int) -> Floats:
    """Turn (h, w, (row, column, C)) into (factor h, factor w, C)."""
    h, w, c = x.shape
    parts = x.reshape(h, w, factor, factor, c // factor**2).swapaxes(1, 2)
    return parts.reshape(h * factor, w * factor, -1)


def _patches(x: Floats, side: int) -> Floats:
    """Turn (h, w, C) into (h / side, w / side, (C, row, column))."""
    h, w, c = x.shape
    parts = x.reshape(h // side, side, w // side, side, c).transpose(0, 2, 4, 1, 3)
    return parts.reshape(h // side, w // side, -1)


class Analysis:
    """g_a: (H, W, 3) to (h, w, M), for H and W multiples of 16."""

    def __init__(self, weights: Weights, config: SmallConfig) -> None:
        named = _Named(weights, FLOAT)
        self.embed, self.down = named.matrix("analysis.embed"), named.matrix("analysis.down")
        self.blocks = named.blocks("analysis.blocks", config.blocks)
        self.latent_blocks = named.blocks("analysis.latent_blocks", config.latent_blocks)

    def __call__(self, x: Floats, at: Rate) -> Floats:
        """Return the latent y of a picture in [0, 1]."""
        x = self.embed(_patches((x - np.float32(0.5)) * _UNIT, PATCH))
        for block in self.blocks:
            x = block(x, at)
        x = self.down(_patches(x, 2))
        for block in self.latent_blocks:
            x = block(x, at)
        return x


class Synthesis:
    """g_s: (h, w, M) to (H, W, 3), about [0, 1]."""

    def __init__(self, weights: Weights, config: SmallConfig) -> None:
        named = _Named(weights, FLOAT)
        self.latent_blocks = named.blocks("synthesis.latent_blocks", config.latent_blocks)
        self.up, self.last = named.matrix("synthesis.up"), named.matrix("synthesis.last")
        self.blocks = named.blocks("synthesis.blocks", config.blocks)

    def __call__(self, y_hat: Floats, at: Rate) -> Floats:
        """Return the picture of a decoded latent."""
        for block in self.latent_blocks:
            y_hat = block(y_hat, at)
        x = _spread(self.up(y_hat), 2)
        for block in self.blocks:
            x = block(x, at)
        x = self.last(x)
        h, w, _ = x.shape
        pixels = x.reshape(h, w, 3, PATCH, PATCH).transpose(0, 3, 1, 4, 2)
        out: Floats = pixels.reshape(h * PATCH, w * PATCH, 3) / _UNIT + np.float32(0.5)
        return out


class HyperAnalysis:
    """h_a: (h, w, M) to (h/4, w/4, Z)."""

    def __init__(self, weights: Weights) -> None:
        named = _Named(weights, FLOAT)
        self.enter, self.down, self.leave = (
            named.matrix(f"hyper_analysis.{name}") for name in ("enter", "down", "leave")
        )
        self.first, self.second = (
            named.block(f"hyper_analysis.{name}") for name in ("first", "second")
        )

    def __call__(self, y: Floats, at: Rate) -> Floats:
        """Return the hyper-latent z."""
        h = self.down(_patches(self.first(self.enter(y), at), 2))
        return self.leave(_patches(self.second(h, at), 2))


class HyperSynthesis:
    """h_s, exact: (h/4, w/4, Z) to features (h, w, F)."""

    def __init__(self, weights: Weights, scales: Scales) -> None:
        named = _Named.exact(weights, scales)
        self.enter, self.up = (named.matrix(f"hyper_synthesis.{name}") for name in ("enter", "up"))
        self.first, self.second = (
            named.block(f"hyper_synthesis.{name}") for name in ("first", "second")
        )

    def __call__(self, z_hat: Floats, at: Rate) -> Floats:
        """Return the features that the slices are predicted from."""
        h = self.first(_spread(self.enter(z_hat), 2), at)
        return self.second(_spread(self.up(h), 2), at)


class _Slice:
    def __init__(self, named: _Named, name: str, config: SmallConfig) -> None:
        self.enter, self.mean, self.log_scale, self.correct, self.correction = (
            named.matrix(f"{name}.{part}")
            for part in ("enter", "mean", "log_scale", "correct", "correction")
        )
        self.blocks = named.blocks(f"{name}.blocks", config.context_blocks)
        self.tanh = named.kind.tanh

    def support(self, x: Floats, at: Rate) -> Floats:
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, at)
        return h

    def corrected(self, support: Floats, symbols: Floats) -> Floats:
        seen = np.concatenate([support, np.clip(symbols, -_SEEN, _SEEN)], axis=-1)
        lost = 0.5 * self.tanh(self.correction(_gated(self.correct(seen))))
        corrected: Floats = symbols + lost
        return corrected


class Context:
    """The exact models of all slices, in the order of coding."""

    def __init__(self, weights: Weights, config: SmallConfig, scales: Scales) -> None:
        named = _Named.exact(weights, scales)
        self.exp = named.kind.exp
        self.ends = np.cumsum(config.slice_sizes)[:-1].tolist()
        self.slices = [
            _Slice(named, f"context.slices.{i}", config) for i in range(len(config.slice_sizes))
        ]

    def __call__(self, features: Floats, log_steps: Floats, at: Rate, quantise: Quantise) -> Floats:
        """Predict the slices in order; return the latent (h, w, M). `log_steps` is (M,)."""
        decoded: list[Floats] = []
        for i, log_step in enumerate(np.split(log_steps, self.ends)):
            model = self.slices[i]
            support = model.support(np.concatenate([features, *decoded], axis=-1), at)
            mean, step = model.mean(support), self.exp(log_step)
            scale = self.exp(model.log_scale(support) - log_step)
            symbols = quantise(i, mean, step, scale)
            decoded.append(model.corrected(support, symbols) * step + mean)
        return np.concatenate(decoded, axis=-1)
