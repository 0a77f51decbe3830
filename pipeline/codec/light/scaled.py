"""The layers of `pipeline.codec.scaled_layers` in numpy: equal to them to the last bit.

Shapes: arrays are (P, C), P positions in rows and C channels, or (H, W, C); float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.codec.light import exact
from pipeline.codec.scales import Scale, blocks_of, whole_weights

Floats = npt.NDArray[Any]


class ScaledMatrix:
    """A 1x1 convolution: (..., C) to (..., O)."""

    def __init__(self, weight: Floats, bias: Floats, scale: Scale) -> None:
        """`weight` (O, C, 1, 1) and `bias` (O,)."""
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        self.scale, self.bias, self.blocks = scale, bias, blocks_of(flat.shape[1])
        whole, factor = whole_weights(flat, self.blocks, scale)
        self.weight, self.factor = whole.T.astype(np.float32), factor.astype(np.float32)

    def __call__(self, x: Floats) -> Floats:
        """Multiply the positions of x by the matrix, and add the bias."""
        whole = whole_inputs(x, self.scale).reshape(-1, x.shape[-1])
        parts: list[Floats] = [whole[:, block] @ self.weight[block] for block in self.blocks]
        sums = parts[0]
        if len(parts) > 1:
            sums = np.stack(parts).sum(axis=0, dtype=np.float64).astype(np.float32)
        sums *= self.factor
        sums += self.bias
        return sums.reshape(*x.shape[:-1], -1)


class ScaledTaps:
    """A depthwise 3x3 convolution of stride 1: (H, W, C) to the same shape."""

    def __init__(self, weight: Floats, bias: Floats, scale: Scale) -> None:
        """`weight` (C, 1, 3, 3) and `bias` (C,)."""
        flat = weight.reshape(len(weight), -1).astype(np.float64)
        whole, factor = whole_weights(flat, [slice(0, 9)], scale)
        self.scale, self.bias, self.factor = scale, bias, factor.astype(np.float32)
        taps = whole.reshape(-1, 3, 3).transpose(1, 2, 0)
        self.weight = np.ascontiguousarray(taps, np.float32)

    def __call__(self, x: Floats) -> Floats:
        """Convolve each channel of x with its taps, and add the bias."""
        sums = exact.depthwise(whole_inputs(x, self.scale), self.weight)
        sums *= self.factor
        sums += self.bias
        return sums


class ScaledNorm:
    """Layer normalisation over channels."""

    def __init__(self, weight: Floats, bias: Floats, eps: float, scale: Scale) -> None:
        self.weight, self.bias, self.eps, self.scale = weight, bias, eps, scale

    def __call__(self, x: Floats) -> Floats:
        """Normalise x, its two sums those of whole numbers."""
        whole, count = whole_inputs(x, self.scale), float(x.shape[-1])
        mean = whole.sum(-1, keepdims=True, dtype=np.float64) / count
        squares = np.square(whole, dtype=np.float64).sum(-1, keepdims=True) / count
        unit = 2.0**-self.scale.exponent
        variance = np.maximum(squares - mean * mean, 0) * (unit * unit)
        divisor = np.sqrt(variance + self.eps).astype(np.float32)
        normal: Floats = (x - (mean * unit).astype(np.float32)) / divisor
        normal *= self.weight
        normal += self.bias
        return normal


def whole_inputs(x: Floats, scale: Scale) -> Floats:
    """Return x in units of 2^-exponent, rounded and held within the scale's bits; float32."""
    whole = x * np.float32(2.0**scale.exponent)
    np.rint(whole, out=whole)
    return np.clip(whole, -scale.largest, scale.largest, out=whole)
