"""The entropy coder of the small model's latents in numpy; writes the same words as in torch.

Shapes: the latents are (h, w, M) and (h/4, w/4, Z); they are coded channel by channel, by rows.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.codec.architectures.small.config import SmallConfig
from pipeline.codec.architectures.small.light.networks import Context, Floats, HyperSynthesis, Rate
from pipeline.codec.hyper_tables import Density, hyper_tables
from pipeline.codec.light.form import Weights
from pipeline.codec.scales import Scales
from pipeline.codec.symbols import (
    LARGEST_SYMBOL,
    SCALE_STEPS,
    Index,
    Ints,
    SymbolDecoder,
    SymbolEncoder,
    Table,
    Words,
    gaussian_tables,
    scale_index,
)


class _SymbolCoder:
    """Encodes or decodes symbols in the order of the file, and keeps their CRC-32."""

    def __init__(self, words: Words | None) -> None:
        """Decode `words`; with None, encode."""
        self.encoder, self.check = SymbolEncoder(), 0
        self.decoder = None if words is None else SymbolDecoder(words)

    def code(self, values: Floats | None, index: Index, tables: Sequence[Table]) -> Ints:
        """Return the next symbols; an encoder rounds `values` (n,), a decoder takes None."""
        if self.decoder is not None:
            symbols = self.decoder.decode(index, tables)
        else:
            assert values is not None
            rounded = np.clip(np.rint(values), -LARGEST_SYMBOL, LARGEST_SYMBOL)
            symbols = rounded.astype(np.int32)
            self.encoder.encode(symbols, index, tables)
        self.check = zlib.crc32(symbols.astype("<i4", copy=False).data, self.check)
        return symbols


class LightCoder:
    """Codes z, then the slices of y in order, each conditioned on the slices before it."""

    def __init__(self, weights: Weights, config: SmallConfig, scales: Scales) -> None:
        self._config = config
        self._dtype = np.float32 if scales else np.float64
        self._hyper_synthesis = HyperSynthesis(weights, scales)
        self._context = Context(weights, config, scales)
        self._log_steps = tuple(weights[f"steps.{name}"].astype(self._dtype) for name in "yz")
        density = _density(weights)
        self._hyper_tables = hyper_tables(density)
        self._medians = density.medians.astype(self._dtype)

    def z_step(self, at: Rate) -> Floats:
        """Return the quantisation steps of z, (Z,)."""
        return self._context.exp(at.mixed(self._log_steps[1]))

    def encode(self, y: Floats, z: Floats, rate: float | None) -> tuple[Words, int]:
        """Return the words of y and z, and the CRC-32 of their symbols."""
        coder = _SymbolCoder(None)
        self._code(coder, z.shape[:2], y.astype(self._dtype), z.astype(self._dtype), rate)
        return coder.encoder.words, coder.check

    def decode(self, words: Words, size: tuple[int, int], rate: float | None) -> tuple[Floats, int]:
        """Return the latent (h, w, M), float32, of `words`, and the CRC-32 of their symbols.

        `size` is the height and width of z. Raises `CodecError` when no encoder wrote the words.
        """
        coder = _SymbolCoder(words)
        y_hat = self._code(coder, size, None, None, rate)
        return y_hat.astype(np.float32), coder.check

    def _code(
        self,
        coder: _SymbolCoder,
        size: tuple[int, ...],
        y: Floats | None,
        z: Floats | None,
        rate: float | None,
    ) -> Floats:
        at = Rate.of(rate, self._config.vectors)
        channels = len(self._medians)
        index = np.repeat(np.arange(channels, dtype=np.uint16), size[0] * size[1])
        values = None if z is None else _by_channel(z - self._medians)
        z_symbols = coder.code(values, index, self._hyper_tables)
        z_hat = _by_position(z_symbols, (*size, channels), self._dtype) + self._medians
        features = self._hyper_synthesis(z_hat * self.z_step(at), at)
        parts = None if y is None else np.split(y, self._context.ends, axis=-1)

        def quantise(i: int, mean: Floats, step: Floats, scale: Floats) -> Floats:
            values = None if parts is None else _by_channel((parts[i] - mean) / step)
            symbols = coder.code(values, _levels(_by_channel(scale)), gaussian_tables())
            return _by_position(symbols, mean.shape, self._dtype)

        return self._context(features, at.mixed(self._log_steps[0]), at, quantise)


def _density(weights: Weights) -> Density:
    def layers(name: str, count: int) -> list[Floats]:
        return [weights[f"hyper_density.{name}.{i}"].astype(np.float64) for i in range(count)]

    medians = weights["hyper_density.quantiles"][:, 0, 1].astype(np.float64)
    return Density(layers("matrices", 5), layers("biases", 5), layers("factors", 4), medians)


def _levels(scale: Floats) -> Index:
    levels = scale_index()
    index: Index = levels[np.clip(scale * SCALE_STEPS, 0, len(levels) - 1).astype(np.int32)]
    return index


def _by_channel(x: Floats) -> Floats:
    return np.moveaxis(x, -1, 0).reshape(-1)


def _by_position(symbols: Ints, shape: tuple[int, ...], dtype: type[Any]) -> Floats:
    h, w, c = shape
    return symbols.reshape(c, h, w).transpose(1, 2, 0).astype(dtype)
