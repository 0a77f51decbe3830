"""How far a BD-rate can be trusted: what other sets of pictures like this one would give.

The pictures are drawn anew with replacement, for both codecs the same, and the means and the
BD-rate are computed again; the middle 95 % of the values are the interval.
Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, percentile intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from pipeline.evaluation.bdrate import BDRateError, RDCurve, bd_rate
from pipeline.evaluation.results import Point

DRAWS, CONFIDENCE = 300, 0.95
# An interval stands only when so many of the drawn sets have a BD-rate at all.
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
    """Return the points' single pictures; BDRateError where a picture lacks `quality`."""
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
    where more than a tenth of the drawn sets have none.
    """
    return _interval(
        lambda drawn: bd_rate(anchor.mean(drawn), test.mean(drawn)), (anchor, test), draws, seed
    )


def gain_interval(
    anchor: PictureCurve,
    champion: PictureCurve,
    challenger: PictureCurve,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Return how many percent more bits `challenger` needs than `champion`, with its interval.

    Each is placed against a third codec's curve, `anchor`: the mean over its own points of the
    log of its rate over the anchor's at the same quality. So models of a single rate, and of
    different rates, can be compared too. Negative: the challenger needs fewer bits.
    """

    def gain(drawn: NDArray[np.int64]) -> float:
        curve = anchor.mean(drawn)
        ours, theirs = (_against(curve, side.mean(drawn)) for side in (challenger, champion))
        return float(np.expm1(ours - theirs) * 100)

    return _interval(gain, (anchor, champion, challenger), draws, seed)


def _against(anchor: RDCurve, points: RDCurve) -> float:
    """Return the mean log-rate of `points` over `anchor`'s at the same qualities."""
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


def _interval(
    estimate: Callable[[NDArray[np.int64]], float],
    curves: Sequence[PictureCurve],
    draws: int,
    seed: int,
) -> Interval:
    pictures = curves[0].rates.shape[1]
    if any(curve.rates.shape[1] != pictures for curve in curves):
        raise BDRateError("the codecs were measured on different numbers of pictures")
    value = estimate(np.arange(pictures))
    rng = np.random.default_rng(seed)
    drawn: NDArray[np.int64] = rng.integers(0, pictures, size=(draws, pictures))
    found = []
    for chosen in drawn:
        try:
            found.append(estimate(chosen))
        except BDRateError:
            continue
    if len(found) < SHARE_DEFINED * draws:
        raise BDRateError("too few sets drawn from these pictures have a BD-rate")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Interval(value, float(low), float(high), CONFIDENCE)
