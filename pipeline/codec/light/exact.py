"""The exact layers of `pipeline.codec.exact_layers` in numpy: equal to them to the last bit.

Shapes: arrays are (P, C), P positions in rows and C channels, or (H, W, C); float64, or float32 in
models whose layers have scales (`pipeline.codec.light.scaled`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]

GRID = 2.0**12
LIMIT = 2.0**12 - 1 / GRID
_WEIGHT_SUM = 2.0**28
_COARSE = 2.0**8
_TABLE_GRID = 2.0**20
_END = 8


def snap(x: Array) -> Array:
    """Round x to the grid and clamp it to the grid's limits, in its own precision."""
    grid = x * GRID
    np.rint(grid, out=grid)
    grid *= 1 / GRID
    return np.clip(grid, -LIMIT, LIMIT, out=grid)


def snap_weight(weight: Array) -> Array:
    """Round (O, ...) to the finest power-of-two grid on which the sums of O outputs stay exact."""
    largest = float(np.abs(weight).reshape(len(weight), -1).sum(1).max(initial=0.0))
    exponent = math.floor(math.log2(_WEIGHT_SUM / largest)) - 1 if largest > 0 else 0
    grid = 2.0 ** min(exponent, 40)
    rounded: Array = np.rint(weight * grid) / grid
    return rounded


class ExactMatrix:
    """A 1x1 convolution: (..., C) to (..., O)."""

    def __init__(self, weight: Array, bias: Array) -> None:
        """`weight` (O, C, 1, 1) and `bias` (O,)."""
        self.weight, self.bias = snap_weight(weight).reshape(len(weight), -1).T, bias

    def __call__(self, x: Array) -> Array:
        """Multiply the positions of x by the matrix, and add the bias."""
        return multiplied(snap(x), self.weight, self.bias)


class ExactTaps:
    """A depthwise 3x3 convolution of stride 1: (H, W, C) to the same shape."""

    def __init__(self, weight: Array, bias: Array) -> None:
        """`weight` (C, 1, 3, 3) and `bias` (C,)."""
        self.weight, self.bias = snap_weight(weight)[:, 0].transpose(1, 2, 0).copy(), bias

    def __call__(self, x: Array) -> Array:
        """Convolve each channel of x with its taps, and add the bias."""
        return depthwise(snap(x), self.weight) + self.bias


class ExactNorm:
    """Layer normalisation over channels."""

    def __init__(self, weight: Array, bias: Array, eps: float) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps

    def __call__(self, x: Array) -> Array:
        """Normalise x, with both sums on grids on which they are exact."""
        x, count = snap(x), float(x.shape[-1])
        coarse = np.rint(x * _COARSE) * (1 / _COARSE)
        mean = x.sum(-1, keepdims=True) / count
        coarse_mean = coarse.sum(-1, keepdims=True) / count
        squares = np.square(coarse).sum(-1, keepdims=True) / count
        variance = np.maximum(squares - coarse_mean * coarse_mean, 0)
        normal: Array = (x - mean) / np.sqrt(variance + self.eps)
        normal *= self.weight
        normal += self.bias
        return normal


def exp(x: Array) -> Array:
    """Look up e^x, with x clamped to at most 8."""
    return _looked_up(x, math.exp, math.exp(_END))


def tanh(x: Array) -> Array:
    """Look up the hyperbolic tangent of x."""
    return _looked_up(x, math.tanh, 1.0)


def _looked_up(x: Array, function: Callable[[float], float], above: float) -> Array:
    x, table = snap(x), _tabulate(function)
    index = np.clip((x + _END) * GRID, 0, len(table) - 1).astype(np.int32)
    values: Array = np.where(x >= _END, above, table[index])
    return values


@cache
def _tabulate(function: Callable[[float], float]) -> Array:
    ends = round(_END * GRID)
    places = (np.arange(-ends, ends) / GRID).tolist()
    table = np.fromiter(map(function, places), np.float64, 2 * ends)
    rounded: Array = np.rint(table * _TABLE_GRID) / _TABLE_GRID
    return rounded


def multiplied(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """Return x (..., C) times `weight` (C, O), plus `bias` (O,)."""
    out: Floats = x.reshape(-1, x.shape[-1]) @ weight
    out += bias
    return out.reshape(*x.shape[:-1], -1)


def depthwise(x: Floats, weight: Floats) -> Floats:
    """Convolve x (H, W, C), padded with zeros, by the 3x3 taps `weight` (3, 3, C)."""
    height, width, _ = x.shape
    padded = np.zeros((height + 2, width + 2, x.shape[2]), x.dtype)
    padded[1:-1, 1:-1] = x
    out, product = np.zeros_like(x), np.empty_like(x)
    for i in range(3):
        for j in range(3):
            np.multiply(padded[i : i + height, j : j + width], weight[i, j], out=product)
            out += product
    return out
