"""Intervals of BD-rate over pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation import BDRateError, bd_rate
from pipeline.evaluation.bdrate_batch import CurveStack, bd_rates
from pipeline.evaluation.bootstrap import (
    PictureCurve,
    bd_rate_interval,
    by_picture,
    gain_interval,
)
from tests.evaluation.conftest import point


def curve(seed: int, factor: float = 1.0, spread: float = 0.0, pictures: int = 12) -> PictureCurve:
    """Four settings on pictures of different difficulty; `factor` and noise act on the rates."""
    rng = np.random.default_rng(7)
    hard = rng.uniform(0.5, 2.0, pictures)
    noise = np.exp(np.random.default_rng(seed).normal(0, spread, pictures))
    rates = np.array([0.2, 0.4, 0.8, 1.6])[:, None] * hard * factor * noise
    qualities = np.array([26.0, 29, 32, 35])[:, None] - 3 * np.log(hard)
    return PictureCurve(rates, qualities)


@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(2, 7))
def test_many_at_once_are_each_the_plain_bd_rate(seed: int, first: int, second: int) -> None:
    rng = np.random.default_rng(seed)
    sides = []
    for count in (first, second):
        rates = np.exp(np.cumsum(rng.uniform(0.05, 1, (count, 5)), axis=0))
        qualities = 30 + np.cumsum(rng.uniform(0.1, 2, (count, 5)), axis=0)
        sides.append(PictureCurve(rates, qualities))
    drawn = rng.integers(0, 5, (4, 5))
    found = bd_rates(*(CurveStack.of(side.rates, side.qualities, drawn) for side in sides))
    for value, chosen in zip(found, drawn, strict=True):
        try:
            expected = bd_rate(*(side.mean(chosen) for side in sides))
        except BDRateError:
            expected = float("nan")
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


@given(st.floats(0.3, 3.0))
@settings(max_examples=10, deadline=None)
def test_where_every_picture_agrees_the_interval_is_a_point(factor: float) -> None:
    found = bd_rate_interval(curve(0), curve(0, factor), draws=50)
    percent = pytest.approx((factor - 1) * 100, abs=1e-6)
    assert (found.value, found.low, found.high) == (percent, percent, percent)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    # The true mean of the noise's effect on a mean rate: log-normal with sigma 0.1.
    truth = 100 * (np.exp(0.1**2 / 2) - 1)
    held = 0
    for seed in range(30):
        found = bd_rate_interval(curve(0), curve(seed, spread=0.1), draws=300, seed=seed)
        held += found.low <= truth <= found.high
    # Percentile intervals are a little short on a dozen pictures.
    assert held >= 22


def test_more_spread_gives_a_wider_interval_and_the_seed_repeats_it() -> None:
    narrow = bd_rate_interval(curve(0), curve(1, spread=0.02), draws=100)
    wide = bd_rate_interval(curve(0), curve(1, spread=0.2), draws=100)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert wide.low < wide.value < wide.high
    assert wide == bd_rate_interval(curve(0), curve(1, spread=0.2), draws=100)


def test_models_of_single_rates_are_compared_by_way_of_an_anchor() -> None:
    anchor, whole = curve(0), curve(0, 0.8)
    champion = PictureCurve(whole.rates[1:2] * 1.1, whole.qualities[1:2])
    challenger = PictureCurve(whole.rates[2:3], whole.qualities[2:3])
    found = gain_interval(anchor, champion, challenger, draws=60)
    assert found.value == pytest.approx(100 * (1 / 1.1 - 1))
    assert found.high < 0
    back = gain_interval(anchor, challenger, champion, draws=60)
    assert (1 + found.value / 100) * (1 + back.value / 100) == pytest.approx(1)


def test_what_cannot_be_compared_says_why() -> None:
    high = PictureCurve(curve(0).rates, curve(0).qualities + 20)
    with pytest.raises(BDRateError, match="share no range"):
        bd_rate_interval(curve(0), high)
    with pytest.raises(BDRateError, match="outside the range"):
        gain_interval(curve(0), curve(0), high)
    with pytest.raises(BDRateError, match="different numbers of pictures"):
        bd_rate_interval(curve(0), curve(0, pictures=5))


def test_points_become_curves_by_picture() -> None:
    found = by_picture([point(0.5, 30), point(1.0, 33)])
    assert found.rates.shape == (2, 3)
    assert found.rates.mean(axis=1) == pytest.approx([0.5, 1.0])
    assert by_picture([point(0.5, 30)], "ms_ssim_db").qualities.mean() == pytest.approx(15)
