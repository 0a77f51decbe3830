"""Bjontegaard delta rate: the mean difference in rate between two curves at equal quality.

G. Bjontegaard, "Calculation of average PSNR differences between RD-curves", VCEG-M33, 2001, with
the piecewise cubic (PCHIP) interpolation that replaced his cubic fit in the standards' own tools:

    log r(q)  interpolated through each curve's points,   q in the qualities both curves reach
    BD-rate = exp( mean over q of [log r_test(q) - log r_anchor(q)] ) - 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator


class BDRateError(EvaluationError):
    """A pair of curves for which BD-rate is not defined."""


@dataclass(frozen=True)
class RDCurve:
    """A rate-distortion curve: rates (bits per pixel, above 0) and qualities (dB), any order."""

    rates: Sequence[float]
    qualities: Sequence[float]


def bd_rate(anchor: RDCurve, test: RDCurve) -> float:
    """Return the difference of `test`'s rate from `anchor`'s at equal quality, in percent.

    A negative value means that `test` needs fewer bits. The mean is taken in log-rate over the
    range of qualities that both curves cover. Raises BDRateError when a curve has fewer than two
    points, is not strictly rising, holds a value that is not finite, or shares no range with the
    other curve.
    """
    log_anchor = _log_rate(anchor, "the anchor")
    log_test = _log_rate(test, "the tested curve")
    low = max(float(log_anchor.x[0]), float(log_test.x[0]))
    high = min(float(log_anchor.x[-1]), float(log_test.x[-1]))
    if high <= low:
        raise BDRateError(
            "the curves share no range of quality: the anchor spans "
            f"{log_anchor.x[0]:.2f} to {log_anchor.x[-1]:.2f} dB, "
            f"the tested one {log_test.x[0]:.2f} to {log_test.x[-1]:.2f} dB"
        )
    area = float(log_test.integrate(low, high)) - float(log_anchor.integrate(low, high))
    return float(np.expm1(area / (high - low)) * 100)


def common_range(anchor: RDCurve, test: RDCurve) -> tuple[float, float]:
    """Return the lowest and highest quality (dB) that both curves reach (may be empty)."""
    low = max(min(anchor.qualities), min(test.qualities))
    return low, min(max(anchor.qualities), max(test.qualities))


def _log_rate(curve: RDCurve, which: str) -> PchipInterpolator:
    # Imported here: a training process uses this package's metrics and needs no scipy.
    from scipy.interpolate import PchipInterpolator

    rates = np.asarray(curve.rates, dtype=np.float64)
    qualities = np.asarray(curve.qualities, dtype=np.float64)
    if rates.ndim != 1 or rates.shape != qualities.shape or rates.size < 2:
        raise BDRateError(f"{which} needs at least two points of rate and quality")
    if not (np.isfinite(rates).all() and np.isfinite(qualities).all() and (rates > 0).all()):
        raise BDRateError(f"{which} needs finite qualities and finite rates above 0")
    order = np.argsort(qualities, kind="stable")
    rates, qualities = rates[order], qualities[order]
    if (np.diff(qualities) <= 0).any() or (np.diff(rates) <= 0).any():
        raise BDRateError(f"{which} does not rise: somewhere more bits give no higher quality")
    return PchipInterpolator(qualities, np.log(rates))
