"""The latents of one tile to words and back: what compress and decompress share.

Symbols and words are made on the CPU; the networks run where the model is. Everything that the
decoder must repeat runs through `exact_copy`, so that it repeats it to the last bit.

Shapes: M latent channels, Z hyper-latent channels; h = H/16, w = W/16 of the padded tile.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.codec.architectures.cca.context import HyperOutput
from pipeline.codec.architectures.cca.gains import Gained, Gains
from pipeline.codec.densities import FactorizedDensity
from pipeline.codec.errors import CodecError
from pipeline.codec.exact import exact_copy
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

if TYPE_CHECKING:
    from pipeline.codec.architectures.cca.model import CCAModel

# Tails of z's density below this mass share the end of a channel's table.
_TAIL = 1e-7
_WIDEST = 4096


@dataclass(frozen=True)
class CodedTile:
    """A tile's words, the decoded latent (1, M, h, w), and the running check of its symbols."""

    words: Words
    y_hat: Tensor
    check: int


class _Coder(Protocol):
    """Codes one array of symbols: in an encoder the values' nearest, in a decoder the next."""

    def code(self, values: Tensor | None, index: Index, tables: list[Table]) -> Ints: ...


class LatentCoder:
    """Encodes and decodes latents with the weights that `model` has at this moment."""

    def __init__(self, model: CCAModel) -> None:
        self.device = next(model.parameters()).device
        self.hyper_channels = model.config.hyper_latent_channels
        self._hyper_mean = exact_copy(model.hyper_mean)
        self._hyper_scale = exact_copy(model.hyper_scale)
        self._context = exact_copy(model.context)
        self._medians = model.hyper_density.medians.double()
        self._hyper_tables = hyper_tables(model.hyper_density)
        self._tables = gaussian_tables()
        self._level_of = torch.from_numpy(scale_index()).to(self.device)
        # The exact gains at a rate of the model (None: it has but one); the last few are kept.
        self.gained = lru_cache(maxsize=16)(partial(_gained, model.gains, self.device))

    @torch.no_grad()
    def encode(self, y: Tensor, z: Tensor, check: int = 0, rate: float | None = None) -> CodedTile:
        """Encode y (1, M, h, w) and z (1, Z, h/4, w/4), both with the gain of `rate`.

        `check` runs on from the last tile.
        """
        if not (y.isfinite().all() and z.isfinite().all()):
            raise CodecError("the model makes numbers of this picture that are not finite")
        coder = _Encoder(check)
        parts = torch.split(y.double(), list(self._context.sizes), dim=1)
        y_hat = self._run(coder, rate, z.double() - self._medians, parts, z.shape[2:])
        return CodedTile(coder.symbols.words, y_hat, coder.check)

    @torch.no_grad()
    def decode(
        self,
        words: Words,
        height: int,
        width: int,
        check: int = 0,
        partial: bool = False,
        rate: float | None = None,
    ) -> CodedTile:
        """Decode `words` to the latent of a tile whose z has `height` x `width` positions.

        With `partial`, words may be missing at the end: slices that did not arrive as a whole
        take their predicted mean. Raises `CodecError` when the words can't be what an encoder
        wrote.
        """
        coder = _PartialDecoder(words, check) if partial else _Decoder(words, check)
        y_hat = self._run(coder, rate, None, None, (height, width))
        return CodedTile(words, y_hat, coder.check)

    def _run(
        self,
        coder: _Coder,
        rate: float | None,
        z: Tensor | None,
        parts: Any,
        size: tuple[int, ...],
    ) -> Tensor:
        """Go through z and the slices in order, coding each; return the decoded latent."""
        channel = np.repeat(np.arange(self.hyper_channels, dtype=np.uint16), math.prod(size))
        symbols = coder.code(z, channel, self._hyper_tables)
        z_hat = self._tensor(symbols, (1, self.hyper_channels, *size)) + self._medians
        z_hat *= self.gained(rate).z_inverse
        hyper = HyperOutput(self._hyper_mean(z_hat), self._hyper_scale(z_hat))

        def quantise(i: int, mean: Tensor, scale: Tensor) -> Tensor:
            values = None if parts is None else parts[i] - mean
            found = coder.code(values, self._levels(scale), self._tables)
            return self._tensor(found, mean.shape) + mean

        return torch.cat(self._context(hyper, quantise).decoded, dim=1)

    def _levels(self, scale: Tensor) -> Index:
        steps = (scale.flatten() * SCALE_STEPS).clamp_(0, len(self._level_of) - 1)
        index: Index = self._level_of[steps.to(torch.int32)].cpu().numpy()
        return index

    def _tensor(self, symbols: Ints, shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.from_numpy(symbols).to(self.device, torch.float64).reshape(shape)


def _gained(gains: Gains | None, device: torch.device, rate: float | None) -> Gained:
    return Gained.none(device) if gains is None or rate is None else gains.exact(rate)


class _Encoder:
    def __init__(self, check: int) -> None:
        self.symbols, self.check = SymbolEncoder(), check

    def code(self, values: Tensor | None, index: Index, tables: list[Table]) -> Ints:
        if values is None:
            raise TypeError("an encoder needs values")
        rounded = values.round().clamp_(-LARGEST_SYMBOL, LARGEST_SYMBOL)
        symbols: Ints = rounded.to(torch.int32).flatten().cpu().numpy()
        self.symbols.encode(symbols, index, tables)
        self.check = check_symbols(symbols, self.check)
        return symbols


class _Decoder:
    def __init__(self, words: Words, check: int) -> None:
        self.symbols, self.check = SymbolDecoder(words), check

    def code(self, values: Tensor | None, index: Index, tables: list[Table]) -> Ints:
        symbols = self.symbols.decode(index, tables)
        self.check = check_symbols(symbols, self.check)
        return symbols


class _PartialDecoder(_Decoder):
    """Gives zeros from the first array on that did not arrive as a whole."""

    ended = False

    def code(self, values: Tensor | None, index: Index, tables: list[Table]) -> Ints:
        if not self.ended:
            try:
                symbols = super().code(values, index, tables)
                self.ended = self.symbols.exhausted
            except CodecError:
                self.ended = True
        return np.zeros(len(index), np.int32) if self.ended else symbols


def check_symbols(symbols: Ints, check: int) -> int:
    """Run CRC-32 on over `symbols`, as little-endian 32-bit integers."""
    return zlib.crc32(symbols.astype("<i4", copy=False).data, check)


def hyper_tables(density: FactorizedDensity) -> list[Table]:
    """Return a table for each channel of z, of its symbols round(z - median)."""
    exact = FactorizedDensity(density.quantiles.shape[0]).double()
    exact.load_state_dict(density.state_dict())
    medians = exact.quantiles.detach()[:, :, 1:2]
    reach = _WIDEST
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    with torch.no_grad():
        below = torch.sigmoid(exact.logits(medians + steps - 0.5)).squeeze(1).numpy()
        above = torch.sigmoid(-exact.logits(medians + steps + 0.5)).squeeze(1).numpy()
        mass = exact.mass(medians + steps).squeeze(1).numpy()
    tables = []
    for low, high, masses in zip(below, above, mass, strict=True):
        inside = np.flatnonzero((low + masses > _TAIL) & (high + masses > _TAIL))
        first, last = (inside[0], inside[-1]) if len(inside) > 1 else (reach - 1, reach + 1)
        window = masses[first : last + 1].copy()
        window[0] += low[first]
        window[-1] += high[last]
        tables.append(Table.of(int(first) - reach, window))
    return tables
