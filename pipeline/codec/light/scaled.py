"""The layers of `pipeline.codec.scaled_layers` in numpy: equal to them to the last bit.

Shapes: arrays are (P, C), P positions in rows and C channels, or (H, W, C); float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.light import exact
from pipeline.codec.scales import (
    LARGEST_SUM,
    TABLE_STEPS,
    Scale,
    blocks_of,
    scaled_weights,
    tabulated,
)

Floats = npt.NDArray[Any]
_END = 8


class ScaledMatrix:
    """A 1x1 convolution: (..., C) to (..., O)."""

    def __init__(self, weight: Floats, bias: Floats, scale: Scale) -> None:
        """`weight` (O, C, 1, 1) and `bias` (O,)."""
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        self.scale, self.bias, self.blocks = scale, bias, blocks_of(flat.shape[1])
        self.weight = np.ascontiguousarray(scaled_weights(flat, self.blocks, scale).T)

    def __call__(self, x: Floats) -> Floats:
        """Multiply the positions of x by the matrix, and add the bias."""
        whole = whole_inputs(x, self.scale).reshape(-1, x.shape[-1])
        sums: Floats = whole[:, self.blocks[0]] @ self.weight[self.blocks[0]]
        for block in self.blocks[1:]:
            sums += whole[:, block] @ self.weight[block]
        sums += self.bias
        return sums.reshape(*x.shape[:-1], -1)


class ScaledTaps:
    """A depthwise 3x3 convolution of stride 1: (H, W, C) to the same shape."""

    def __init__(self, weight: Floats, bias: Floats, scale: Scale) -> None:
        """`weight` (C, 1, 3, 3) and `bias` (C,)."""
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        taps = scaled_weights(flat, [slice(None)], scale).T.reshape(3, 3, -1)
        self.scale, self.bias, self.weight = scale, bias, np.ascontiguousarray(taps)

    def __call__(self, x: Floats) -> Floats:
        """Convolve each channel of x with its taps, and add the bias."""
        sums = exact.depthwise(whole_inputs(x, self.scale), self.weight)
        sums += self.bias
        return sums


class ScaledNorm:
    """Layer normalisation over channels."""

    def __init__(self, weight: Floats, bias: Floats, eps: float, scale: Scale) -> None:
        self.weight, self.bias, self.eps, self.scale = weight, bias, eps, scale

    def __call__(self, x: Floats) -> Floats:
        """Normalise x; both sums are sums of whole numbers."""
        whole, count = whole_inputs(x, self.scale), float(x.shape[-1])
        # Exact in float32 if even the largest inputs stay within the bound.
        fits = x.shape[-1] * self.scale.largest**2 <= LARGEST_SUM
        dtype = np.float32 if fits else np.float64
        mean = whole.sum(-1, keepdims=True, dtype=dtype).astype(np.float64) / count
        squares = np.square(whole, dtype=dtype).sum(-1, keepdims=True).astype(np.float64) / count
        unit = 2.0**-self.scale.exponent
        variance = np.maximum(squares - mean * mean, 0) * (unit * unit)
        divisor = np.sqrt(variance + self.eps).astype(np.float32)
        normal: Floats = (x - (mean * unit).astype(np.float32)) / divisor
        normal *= self.weight
        normal += self.bias
        return normal


def exp(x: Floats) -> Floats:
    """Look up e^x, with x clamped to at most 8."""
    return _looked_up(x, math.exp, math.exp(_END))


def tanh(x: Floats) -> Floats:
    """Look up the hyperbolic tangent of x."""
    return _looked_up(x, math.tanh, 1.0)


def _looked_up(x: Floats, function: Callable[[float], float], above: float) -> Floats:
    table = _table(function, above)
    places = np.float32(_END * TABLE_STEPS + 0.5) + x * np.float32(TABLE_STEPS)
    values: Floats = table[np.clip(places, 0, len(table) - 1).astype(np.int32)]
    return values


@cache
def _table(function: Callable[[float], float], above: float) -> Floats:
    return tabulated(function, _END, above)


def whole_inputs(x: Floats, scale: Scale) -> Floats:
    """Return x in units of 2^-exponent, rounded and clamped to the scale's bits; float32."""
    whole = x * np.float32(2.0**scale.exponent)
    np.rint(whole, out=whole)
    return np.clip(whole, -scale.largest, scale.largest, out=whole)
