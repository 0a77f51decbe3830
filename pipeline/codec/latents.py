"""Encodes the latents of one tile to words and back, by code that encoder and decoder share.

y is coded under Gaussians whose means and scales networks predict from the hyper-latent z and from
the parts of y that are decoded already; z is coded under a learned density per channel. Symbols and
words are made on the CPU; the networks run on the model's device. The networks that the decoder
must repeat are exact copies (`exact_copy`), whose results are equal to the last bit.

Shapes: M latent channels, Z hyper-latent channels; h and w the positions of y in the tile.
"""

from __future__ import annotations

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.codec.densities import FactorizedDensity
from pipeline.codec.errors import CodecError
from pipeline.codec.hyper_tables import hyper_tables
from pipeline.codec.interface import CodedTile
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

# Codes a part of y. Takes its values (None in a decoder), means and scales, tensors of one shape;
# returns the quantised part: symbols + mean.
Code = Callable[[Tensor | None, Tensor, Tensor], Tensor]


class _SymbolCoder(Protocol):
    """Codes one array of symbols: an encoder rounds values, a decoder reads the next symbols."""

    check: int

    def code(self, values: Tensor | None, index: Index, tables: list[Table]) -> Ints: ...


class HyperpriorCoder(ABC):
    """Encodes and decodes latents with a model's current weights.

    An architecture adds `analyse_y`, and `decode_y`, which codes the parts of y in order.
    """

    def __init__(self, density: FactorizedDensity, dtype: torch.dtype = torch.float64) -> None:
        """`density` is the density of z; the exact networks compute in `dtype`."""
        self.dtype = dtype
        self.device = density.quantiles.device
        self.hyper_channels = density.quantiles.shape[0]
        self._medians = density.medians.to(dtype)
        self._hyper_tables = hyper_tables(density.as_arrays())
        self._tables = gaussian_tables()
        self._level_of = torch.from_numpy(scale_index().copy()).to(self.device)

    @abstractmethod
    def analyse_y(self, y: Tensor, rate: float | None) -> tuple[Tensor, Tensor]:
        """Return y (1, M, h, w) and z (1, Z, h', w') as they are coded at `rate`.

        `y` is the output of the analysis.
        """

    @abstractmethod
    def decode_y(self, z_hat: Tensor, y: Tensor | None, code: Code, rate: float | None) -> Tensor:
        """Code each part of y, in order; return the latent (1, M, h, w) for the synthesis.

        `z_hat` (1, Z, h', w') is the decoded z. `y` is the latent in an encoder, and None in a
        decoder, where `code` takes None for the values. All are of `dtype`.
        Networks that predict means and scales must be exact (`exact_copy`), and so must all
        operations on their results.
        """

    @torch.no_grad()
    def encode(self, y: Tensor, check: int = 0, rate: float | None = None) -> CodedTile:
        """Encode y (1, M, h, w), the output of the analysis; see `LatentCoder.encode`."""
        y, z = self.analyse_y(y, rate)
        if not (y.isfinite().all() and z.isfinite().all()):
            raise CodecError("the model computes numbers that are not finite for this picture")
        coder = _Encoder(check)
        y_hat = self._run(coder, rate, z, y, z.shape[2:])
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

        With `partial`, words may be missing at the end: parts of y that did not arrive as a whole
        take their predicted means. Raises `CodecError` when no encoder can have written the words.
        """
        coder = _PartialDecoder(words, check) if partial else _Decoder(words, check)
        y_hat = self._run(coder, rate, None, None, (height, width))
        return CodedTile(words, y_hat, coder.check)

    def _run(
        self,
        coder: _SymbolCoder,
        rate: float | None,
        z: Tensor | None,
        y: Tensor | None,
        size: tuple[int, ...],
    ) -> Tensor:
        """Code z (`size`: its height and width) and the parts of y; return the decoded latent."""

        def code(values: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
            residual = None if values is None else values - mean
            symbols = coder.code(residual, self._levels(scale), self._tables)
            return self._tensor(symbols, mean.shape) + mean

        # Inference mode saves a tenth of a small picture's time; the clone is a normal tensor.
        with torch.inference_mode():
            if z is not None and y is not None:
                z, y = z.to(self.dtype) - self._medians, y.to(self.dtype)
            channel = np.repeat(np.arange(self.hyper_channels, dtype=np.uint16), math.prod(size))
            z_symbols = coder.code(z, channel, self._hyper_tables)
            z_hat = self._tensor(z_symbols, (1, self.hyper_channels, *size)) + self._medians
            y_hat = self.decode_y(z_hat, y, code, rate).float()
        return y_hat.clone(memory_format=torch.preserve_format)

    def _levels(self, scale: Tensor) -> Index:
        steps = (scale.flatten() * SCALE_STEPS).clamp_(0, len(self._level_of) - 1)
        index: Index = self._level_of.index_select(0, steps.to(torch.int32)).cpu().numpy()
        return index

    def _tensor(self, symbols: Ints, shape: torch.Size | tuple[int, ...]) -> Tensor:
        tensor = torch.from_numpy(symbols).reshape(shape)
        return tensor.to(self.device, self.dtype, memory_format=torch.channels_last)


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
    """Returns zeros from the first array on that did not arrive as a whole."""

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
    """Continue the CRC-32 `check` over `symbols`, as little-endian 32-bit integers."""
    return zlib.crc32(symbols.astype("<i4", copy=False).data, check)
