"""Rounds inputs and weights to whole numbers, so that sums are exact in float32.

A layer with a scale takes its inputs as whole numbers of `bits` bits, sign included, in units of
2^-exponent, and its weights as whole numbers in a power-of-two unit of each output. Inner
dimensions are cut into blocks. In every block the largest input times the sum of the weights'
absolute values stays below 2^24, so all products and all partial sums, in any order, are whole
numbers that float32 holds. Blocks are added in float32, in the order of their inputs.

This module needs no torch, because `pipeline.codec.light` uses it too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.errors import CodecError

Array = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]

# Whole numbers up to this one, and their sums, are exact in float32.
LARGEST_SUM = 2**24 - 1
# The most inputs that one block adds up.
BLOCK = 256
# Steps of a table for an interval of 1; a table's values are multiples of 2^-20.
TABLE_STEPS = 2**10
_TABLE_GRID = 2.0**20
_BITS = range(4, 17)
_EXPONENTS = range(-40, 41)
# Weights beyond this would leave float32's range once scaled.
_LARGEST_WEIGHT = 2.0**60
_FINEST = 40


@dataclass(frozen=True)
class Scale:
    """How a layer rounds its inputs: to multiples of 2^-exponent, of `bits` bits with the sign."""

    exponent: int
    bits: int

    @property
    def unit(self) -> float:
        """The factor that makes inputs whole numbers: 2^exponent."""
        return 2.0**self.exponent

    @property
    def largest(self) -> int:
        """The largest input, in units of 2^-exponent."""
        return int(2 ** (self.bits - 1) - 1)


Scales = Mapping[str, Scale]


def scales_of(content: Any) -> dict[str, Scale]:
    """Return scales by the names of their layers; `content` comes from `plain`.

    Raises `CodecError` when it has another form, or a number is out of range.
    """
    if not isinstance(content, dict) or not content:
        raise CodecError("its scales are no mapping from layers to numbers")
    scales = {}
    for name, numbers in content.items():
        whole = isinstance(numbers, list) and len(numbers) == 2
        if not whole or any(type(number) is not int for number in numbers):
            raise CodecError(f"its scale of {name} is not two whole numbers")
        exponent, bits = numbers
        if exponent not in _EXPONENTS or bits not in _BITS:
            raise CodecError(f"its scale of {name}, {exponent} and {bits} bits, is out of range")
        scales[str(name)] = Scale(exponent, bits)
    return scales


def plain(scales: Scales) -> dict[str, list[int]]:
    """Return `scales` as plain JSON values, sorted by name."""
    return {name: [scale.exponent, scale.bits] for name, scale in sorted(scales.items())}


def digested(scales: Scales) -> bytes:
    """Return the bytes of `scales` that a fingerprint covers."""
    return b"scales " + json.dumps(plain(scales)).encode()


def blocks_of(inputs: int) -> list[slice]:
    """Split `inputs` inputs into the fewest possible blocks, of about the same length."""
    count = max(1, -(-inputs // BLOCK))
    ends = [inputs * i // count for i in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def whole_weights(weight: Array, blocks: Sequence[slice], scale: Scale) -> tuple[Array, Array]:
    """Return `weight` (O, K) as whole numbers, and each output's factor (O,), float64.

    An output is the sum of products of whole inputs and whole weights, times its factor. Each
    output's unit is the finest power of two with which every block keeps its bound; all of this is
    exact.
    Raises `CodecError` for weights that are too large to be scaled.
    """
    sizes = np.abs(weight).max(axis=1, initial=0.0)
    if not (sizes < _LARGEST_WEIGHT).all():
        raise CodecError("weights from 2^60 up can't be scaled")
    bound = LARGEST_SUM // scale.largest
    # No finer unit is possible: the largest weight alone would exceed the bound.
    exponents = np.minimum(bound.bit_length() + 1 - np.frexp(sizes)[1], _FINEST)
    while True:
        whole: Array = np.rint(np.ldexp(weight, exponents[:, None]))
        over = largest_sums(whole, blocks) > bound
        if not over.any():
            return whole, np.ldexp(1.0, -(exponents + scale.exponent))
        exponents = exponents - over


def scaled_weights(weight: Array, blocks: Sequence[slice], scale: Scale) -> Singles:
    """Return `weight` (O, K) as `whole_weights` rounds it, times each output's factor.

    Products of whole inputs with these weights add up to outputs. All are multiples of one power of
    two, so their sums are as exact as sums of whole numbers.
    """
    whole, factor = whole_weights(weight, blocks, scale)
    return (whole * factor[:, None]).astype(np.float32)


def tabulated(function: Callable[[float], float], end: int, above: float | None) -> Singles:
    """Return the values of `function` from -`end` to `end`, in steps of 1 / `TABLE_STEPS`.

    The last value is `above`; if that is None it is `end`, and from there on the function is x.
    """
    places = range(-end * TABLE_STEPS, end * TABLE_STEPS)
    values = [*(function(i / TABLE_STEPS) for i in places), end if above is None else above]
    rounded = np.rint(np.array(values) * _TABLE_GRID) / _TABLE_GRID
    return rounded.astype(np.float32)


def largest_sums(whole: Array, blocks: Sequence[slice]) -> Array:
    """Return the largest sum of absolute values in a block, for each output of `whole` (O, K)."""
    sums = [np.abs(whole[:, block]).sum(axis=1) for block in blocks]
    largest: Array = np.max(sums, axis=0)
    return largest
