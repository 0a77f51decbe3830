"""Confidence intervals of BD-rates: what other sets of similar pictures would give.

Sets of pictures are drawn with replacement, the same ones for both codecs. The means and the
BD-rate are computed for each drawn set; the middle 95 % of the values are the interval.
Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, percentile intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from pipeline.evaluation.bdrate import BDRateError, RDCurve, bd_rate
from pipeline.evaluation.bdrate_batch import CurveStack, bd_rates
from pipeline.evaluation.results import Point

DRAWS, CONFIDENCE = 1000, 0.95
# An interval needs this share of the drawn sets to have a BD-rate at all.
SHARE_DEFINED = 0.9


@dataclass(frozen=True)
class PictureCurve:
    """Rates (bpp) and qualities (dB) of S settings on each of P pictures, both (S, P) float64."""

    rates: NDArray[np.float64]
    qualities: NDArray[np.float64]

    def mean(self, drawn: NDArray[np.int64]) -> RDCurve:
        """Return the curve of means over the pictures at the indices `drawn`."""
        rates, qualities = self.rates[:, drawn].mean(axis=1), self.qualities[:, drawn].mean(axis=1)
        return RDCurve(rates.tolist(), qualities.tolist())


@dataclass(frozen=True)
class Interval:
    """An estimate in percent, and the interval that holds it with the given confidence."""

    value: float
    low: float
    high: float
    confidence: float


def by_picture(points: Sequence[Point], quality: str = "psnr") -> PictureCurve:
    """Return the values of single pictures; raise BDRateError if a picture lacks `quality`."""
    rates = [[m.bpp for m in point.pictures] for point in points]
    qualities = [[getattr(m, quality) for m in point.pictures] for point in points]
    if any(value is None for row in qualities for value in row):
        raise BDRateError(f"{quality} is not defined on some picture of the set")
    return PictureCurve(np.array(rates, dtype=np.float64), np.array(qualities, dtype=np.float64))


def bd_rate_interval(
    anchor: PictureCurve, test: PictureCurve, *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return `test`'s BD-rate against `anchor` in percent with its interval over pictures.

    Both must hold the same pictures in the same order. Raises BDRateError as `bd_rate` does, or
    when more than a tenth of the drawn sets have no BD-rate.
    """
    value = bd_rate(*(curve.mean(np.arange(_pictures(anchor, test))) for curve in (anchor, test)))
    drawn = _draw(anchor, draws, seed)
    values = bd_rates(
        CurveStack.of(anchor.rates, anchor.qualities, drawn),
        CurveStack.of(test.rates, test.qualities, drawn),
    )
    return _interval(value, values)


def gain_interval(
    anchor: PictureCurve,
    champion: PictureCurve,
    challenger: PictureCurve,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Return how many percent more bits `challenger` needs than `champion`, with its interval.

    Each is compared with the curve of a third codec, `anchor`: by the mean over its own points of
    log(its rate / the anchor's rate at the same quality). So models of a single rate, and models of
    different rates, can be compared too. A negative value means that the challenger needs fewer
    bits.
    """

    def gain(drawn: NDArray[np.int64]) -> float:
        curve = anchor.mean(drawn)
        ours, theirs = (_against(curve, side.mean(drawn)) for side in (challenger, champion))
        return float(np.expm1(ours - theirs) * 100)

    value = gain(np.arange(_pictures(anchor, champion, challenger)))
    values = np.full(draws, np.nan)
    for i, drawn in enumerate(_draw(anchor, draws, seed)):
        with suppress(BDRateError):
            values[i] = gain(drawn)
    return _interval(value, values)


def _against(anchor: RDCurve, points: RDCurve) -> float:
    """Return the mean of log(rate / `anchor`'s rate at the same quality) over `points`."""
    order = np.argsort(anchor.qualities)
    qualities = np.asarray(anchor.qualities)[order]
    log_rates = np.log(np.asarray(anchor.rates)[order])
    if qualities.size < 2 or (np.diff(qualities) <= 0).any():
        raise BDRateError("the anchor's curve does not rise or has fewer than two points")
    if min(points.qualities) < qualities[0] or max(points.qualities) > qualities[-1]:
        raise BDRateError(
            "a model's quality lies outside the range that the anchor was measured in"
        )
    expected = PchipInterpolator(qualities, log_rates)(points.qualities)
    return float(np.mean(np.log(points.rates) - expected))


def _pictures(*curves: PictureCurve) -> int:
    counts = {int(curve.rates.shape[1]) for curve in curves}
    if len(counts) != 1:
        raise BDRateError("the codecs were measured on different numbers of pictures")
    return counts.pop()


def _draw(curve: PictureCurve, draws: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of each drawn set's pictures, (draws, P)."""
    pictures = curve.rates.shape[1]
    return np.random.default_rng(seed).integers(0, pictures, size=(draws, pictures))


def _interval(value: float, values: NDArray[np.float64]) -> Interval:
    known = values[np.isfinite(values)]
    if known.size < SHARE_DEFINED * values.size:
        raise BDRateError("too few sets drawn from these pictures have a BD-rate")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Interval(value, float(low), float(high), CONFIDENCE)
