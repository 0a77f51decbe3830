"""Codes whole arrays of symbols to words and back with a range coder.

Each symbol is coded under one of a set of tables (one per scale level for y, one per channel for
z). The symbols are sorted by table, stably, so that the coder gets one array per table and no
Python code runs per symbol. A table covers a window of symbols. Each of its two ends stands for
itself and all symbols beyond; the excess over the end follows in an Exp-Golomb code: the number of
bits of (excess + 1), then those bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from pipeline.codec.errors import CodecError

Ints = npt.NDArray[np.int32]
# The table of each symbol: 8 or 16 bits, which sort in linear time.
Index = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Reals = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]

_CATEGORICAL = constriction.stream.model.Categorical
_UNIFORM = constriction.stream.model.Uniform
# The coder's own precision is 2^-24; probabilities are rounded to a coarser grid, so that the
# last bits of a library's erfc don't reach it.
_GRID = 2.0**20
# Symbols are clamped to +-2^23; the excess then has at most 24 bits.
LARGEST_SYMBOL = 2**23
_EXCESS_BITS = 25


@dataclass(frozen=True)
class Table:
    """The probabilities of the symbols `first`, first + 1, ..., first + count - 1."""

    first: int
    count: int
    model: Any

    @classmethod
    def of(cls, first: int, masses: Reals) -> Table:
        """Make a table of the probability masses, which need not add up to one."""
        if not np.isfinite(masses).all() or masses.sum() <= 0:
            raise CodecError("the model's densities are not finite; it can't be used for coding")
        masses = np.maximum(np.rint(masses / masses.sum() * _GRID), 0.25)
        model = _CATEGORICAL((masses / masses.sum()).astype(np.float32), perfect=False)
        return cls(first, len(masses), model)


# Half of the excesses have one bit fewer than the other half, and so on.
_EXCESS = Table.of(0, np.exp2(-np.arange(1.0, _EXCESS_BITS + 1)))


class SymbolEncoder:
    """Encodes arrays of symbols, first in first out; `words` is the stream so far."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def encode(self, symbols: Ints, index: Index, tables: Sequence[Table]) -> None:
        """Append `symbols` (n), each under the table that `index` (n) names."""
        groups = _Groups(index, tables)
        place = symbols[groups.order]
        place -= groups.first
        inside = np.minimum(place, groups.last)
        np.maximum(inside, 0, out=inside)
        for table, part in groups.parts:
            self._coder.encode(inside[part], table.model)
        ends = groups.ends(inside)
        self._encode_excess(np.abs(place[ends] - inside[ends]))

    def _encode_excess(self, excess: Ints) -> None:
        """Append the distances of symbols beyond their table's end, 0 for the end itself."""
        if not len(excess):
            return
        beyond = excess.astype(np.int64) + 1
        bits = np.frexp(beyond.astype(np.float64))[1].astype(np.int32) - 1
        self._coder.encode(bits, _EXCESS.model)
        for count in np.unique(bits[bits > 0]):
            rest = beyond[bits == count] - (1 << int(count))
            self._coder.encode(rest.astype(np.int32), _UNIFORM(1 << int(count)))

    @property
    def words(self) -> Words:
        """The stream as 32-bit words."""
        words: Words = self._coder.get_compressed()
        return words


class SymbolDecoder:
    """Decodes the arrays of a `SymbolEncoder`, in the same order."""

    def __init__(self, words: Words) -> None:
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def decode(self, index: Index, tables: Sequence[Table]) -> Ints:
        """Return the next len(index) symbols; a broken stream raises `CodecError`."""
        groups = _Groups(index, tables)
        inside = np.empty(len(index), np.int32)
        try:
            for table, part in groups.parts:
                inside[part] = self._coder.decode(table.model, part.stop - part.start)
            ends = groups.ends(inside)
            signs = np.where(inside[ends] == 0, -1, 1)
            inside[ends] += signs * self._decode_excess(len(ends))
        except (AssertionError, ValueError) as error:
            raise CodecError("the stream is damaged: its code words mean nothing") from error
        inside += groups.first
        symbols = np.empty_like(inside)
        symbols[groups.order] = inside
        return symbols

    @property
    def exhausted(self) -> bool:
        """False only if words are left for certain, so that all decoded symbols are real."""
        return bool(self._coder.maybe_exhausted())

    def _decode_excess(self, count: int) -> Ints:
        bits = self._coder.decode(_EXCESS.model, count) if count else np.empty(0, np.int32)
        excess = (1 << bits.astype(np.int64)) - 1
        for width in np.unique(bits[bits > 0]):
            among = bits == width
            excess[among] += self._coder.decode(_UNIFORM(1 << int(width)), int(among.sum()))
        distances: Ints = excess.astype(np.int32)
        return distances


class _Groups:
    """The stable order that sorts symbols by table, and each table's part of it."""

    def __init__(self, index: Index, tables: Sequence[Table]) -> None:
        self.order = np.argsort(index, kind="stable")
        counts = np.bincount(index, minlength=len(tables))
        ends = np.cumsum(counts).tolist()
        starts = [0, *ends[:-1]]
        self.parts = [
            (table, slice(start, end))
            for table, start, end in zip(tables, starts, ends, strict=True)
            if end > start
        ]
        # For each symbol in this order: the first symbol and the last place of its table.
        self.first = np.repeat(np.array([table.first for table in tables], np.int32), counts)
        self.last = np.repeat(np.array([table.count - 1 for table in tables], np.int32), counts)

    def ends(self, inside: Ints) -> npt.NDArray[np.intp]:
        """Return where `inside` (symbols minus `first`) is at its table's first or last place."""
        return np.flatnonzero((inside == 0) | (inside == self.last))


# Scales are coded at the nearest of these levels, evenly spaced in the log.
SCALE_STEPS = 1024
SCALE_LEVELS = np.exp(np.linspace(math.log(0.11), math.log(256.0), 96))


@cache
def scale_index() -> npt.NDArray[np.uint8]:
    """Return the nearest level (in the log) of each scale from 0 to 256 in steps of 1 / 1024.

    Looking up floor(1024 scale) is quick, and exact: no logarithm decides between levels.
    """
    scales = np.maximum(np.arange(256 * SCALE_STEPS + 1) / SCALE_STEPS, SCALE_LEVELS[0])
    between = np.sqrt(SCALE_LEVELS[:-1] * SCALE_LEVELS[1:])
    levels: npt.NDArray[np.uint8] = np.searchsorted(between, scales).astype(np.uint8)
    return levels


@cache
def gaussian_tables() -> list[Table]:
    """Return the tables of N(0, level) over unit bins, one for each scale level."""
    return [_gaussian_table(level) for level in SCALE_LEVELS.tolist()]


def _gaussian_table(scale: float) -> Table:
    reach = max(2, math.ceil(5 * scale) + 1)
    tails = [0.5 * math.erfc((k - 0.5) / scale * math.sqrt(0.5)) for k in range(1, reach + 2)]
    # Mass of +-k, k = 1..reach; the last takes the rest of the tail.
    side = [tails[k] - tails[k + 1] for k in range(reach - 1)] + [tails[reach - 1]]
    masses = np.array([*side[::-1], 1 - 2 * tails[0], *side])
    return Table.of(-reach, masses)
