"""Computes many BD-rates at once: those of `bd_rate`, for D pairs of curves, with arrays.

PCHIP as in scipy: F. N. Fritsch and J. Butland, "A method for constructing local monotone
piecewise cubic interpolants", 1984, with three-point slopes at the ends.
Shapes: D drawn sets of pictures, S settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CurveStack:
    """D curves: qualities (D, S) in dB and log-rates (D, S), both rising where `sound` (D,)."""

    qualities: Array
    log_rates: Array
    sound: NDArray[np.bool_]

    @classmethod
    def of(cls, rates: Array, qualities: Array, drawn: NDArray[np.int64]) -> CurveStack:
        """Return the curves of means of (S, P) values over the pictures in each row of `drawn`."""
        mean_rates, mean_qualities = (a[:, drawn].mean(axis=2).T for a in (rates, qualities))
        order = np.argsort(mean_qualities, axis=1, kind="stable")
        x = np.take_along_axis(mean_qualities, order, axis=1)
        y = np.log(np.take_along_axis(mean_rates, order, axis=1))
        rising = (np.diff(x, axis=1) > 0).all(axis=1) & (np.diff(y, axis=1) > 0).all(axis=1)
        return cls(x, y, rising & (x.shape[1] > 1))

    def integral(self, low: Array, high: Array) -> Array:
        """Return the integral of the log-rate over the qualities from `low` to `high`, all (D,)."""
        x, y, slope = self.qualities, self.log_rates, self._slopes()
        width = np.diff(x, axis=1)
        ends = [np.clip((q[:, None] - x[:, :-1]) / width, 0, 1) for q in (low, high)]
        below, above = (
            _antiderivative(t, y[:, :-1], y[:, 1:], slope[:, :-1] * width, slope[:, 1:] * width)
            for t in ends
        )
        area: Array = ((above - below) * width).sum(axis=1)
        return area

    def _slopes(self) -> Array:
        """Return PCHIP's slopes (D, S) at the points of rising curves."""
        width = np.diff(self.qualities, axis=1)
        chord = np.diff(self.log_rates, axis=1) / width
        if chord.shape[1] == 1:
            return np.repeat(chord, 2, axis=1)
        left, right = width[:, :-1], width[:, 1:]
        w1, w2 = 2 * right + left, right + 2 * left
        inner = (w1 + w2) / (w1 / chord[:, :-1] + w2 / chord[:, 1:])
        first = _end(width[:, 0], width[:, 1], chord[:, 0], chord[:, 1])
        last = _end(width[:, -1], width[:, -2], chord[:, -1], chord[:, -2])
        return np.column_stack([first, inner, last])


def bd_rates(anchor: CurveStack, test: CurveStack) -> Array:
    """Return D BD-rates in percent; NaN where a curve does not rise or no quality is shared."""
    low = np.maximum(anchor.qualities[:, 0], test.qualities[:, 0])
    high = np.minimum(anchor.qualities[:, -1], test.qualities[:, -1])
    good = anchor.sound & test.sound & (high > low)
    with np.errstate(all="ignore"):
        area = test.integral(low, high) - anchor.integral(low, high)
        return np.where(good, np.expm1(area / (high - low)) * 100, np.nan)


def _end(near: Array, next_: Array, chord: Array, next_chord: Array) -> Array:
    """Return the slope at an end; on a rising curve, 0 is the only limit that can apply."""
    return np.maximum(((2 * near + next_) * chord - near * next_chord) / (near + next_), 0)


def _antiderivative(t: Array, y0: Array, y1: Array, d0: Array, d1: Array) -> Array:
    """Return the integral of the Hermite cubic from 0 to t of each unit interval."""
    t2, t3, t4 = t**2, t**3, t**4
    return (
        y0 * (t - t3 + t4 / 2)
        + y1 * (t3 - t4 / 2)
        + d0 * (t2 / 2 - 2 * t3 / 3 + t4 / 4)
        + d1 * (t4 / 4 - t3 / 3)
    )
