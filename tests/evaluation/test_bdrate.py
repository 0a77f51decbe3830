"""BD-rate: its properties, and the pairs that the literature gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation import BDRateError, RDCurve, bd_rate
from pipeline.evaluation.published import published_curves

steps = st.lists(
    st.tuples(st.floats(0.05, 1.5), st.floats(0.3, 4.0)),
    min_size=2,
    max_size=8,
)


@st.composite
def curves(draw: st.DrawFn) -> RDCurve:
    """A strictly rising curve that always covers 31 to 33 dB."""
    log_rates, qualities = np.cumsum(np.array(draw(steps)), axis=0).T
    qualities = 30 + 4 * (qualities - qualities[0]) / (qualities[-1] - qualities[0])
    return RDCurve(list(np.exp(log_rates - 4)), list(qualities))


@given(curves())
def test_a_curve_against_itself_differs_by_nothing(curve: RDCurve) -> None:
    assert bd_rate(curve, curve) == pytest.approx(0, abs=1e-9)


@given(curves(), st.floats(0.2, 5.0))
def test_scaling_every_rate_gives_exactly_that_percentage(curve: RDCurve, factor: float) -> None:
    scaled = RDCurve([rate * factor for rate in curve.rates], curve.qualities)
    assert bd_rate(curve, scaled) == pytest.approx((factor - 1) * 100, abs=1e-6)


@given(curves(), curves())
def test_there_and_back_again_cancel(a: RDCurve, b: RDCurve) -> None:
    forth, back = 1 + bd_rate(a, b) / 100, 1 + bd_rate(b, a) / 100
    assert forth * back == pytest.approx(1, rel=1e-9)


@given(curves(), curves(), st.randoms())
def test_the_order_of_points_is_of_no_matter(a: RDCurve, b: RDCurve, random: object) -> None:
    pairs = list(zip(b.rates, b.qualities, strict=True))
    random.shuffle(pairs)
    shuffled = RDCurve([rate for rate, _ in pairs], [quality for _, quality in pairs])
    assert bd_rate(a, shuffled) == pytest.approx(bd_rate(a, b), rel=1e-9, abs=1e-9)


def test_straight_lines_agree_with_the_integral_by_hand() -> None:
    # log2 rates 0..2 and 1..2 over 30..32 dB: the mean difference is 0.5 octaves.
    anchor, test = RDCurve([1, 4], [30, 32]), RDCurve([2, 4], [30, 32])
    assert bd_rate(anchor, test) == pytest.approx(100 * (2**0.5 - 1))


def test_only_the_common_range_counts() -> None:
    anchor = RDCurve([1, 2, 4], [30, 31, 32])
    longer = RDCurve([0.01, 2, 4, 900], [29, 31, 32, 33])
    shorter = RDCurve([2, 4], [31, 32])
    assert bd_rate(shorter, longer) == pytest.approx(bd_rate(shorter, anchor), abs=20)
    assert bd_rate(anchor, shorter) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("tested", "anchor", "percent"),
    [
        ("CCA (2024), as published", "VTM (VVC intra)", -13.7),
        ("ELIC (2022)", "VTM (VVC intra)", -7.0),
        ("CCA (2024), as published", "BPG 4:4:4", -31.5),
        ("CCA (2024), as published", "WebP", -52),
        ("CCA (2024), as published", "JPEG", -69),
    ],
)
def test_published_pairs_come_out_as_the_literature_says(
    tested: str, anchor: str, percent: float
) -> None:
    curves = published_curves()
    tolerance = 0.05 if percent % 1 else 0.5
    assert bd_rate(curves[anchor], curves[tested]) == pytest.approx(percent, abs=tolerance)


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        (RDCurve([1], [30]), "at least two points"),
        (RDCurve([1, 2], [30]), "at least two points"),
        (RDCurve([1, 2], [30, 30]), "does not rise"),
        (RDCurve([1, 2, 3], [30, 32, 31]), "does not rise"),
        (RDCurve([0, 2], [30, 32]), "above 0"),
        (RDCurve([1, 2], [30, float("inf")]), "finite"),
        (RDCurve([1, 2], [40, 42]), "share no range"),
    ],
)
def test_curves_without_a_bd_rate_say_why(curve: RDCurve, words: str) -> None:
    with pytest.raises(BDRateError, match=words):
        bd_rate(RDCurve([1, 2, 4], [30, 31, 32]), curve)
