"""How many bits a picture may take: qualities in words and numbers, and the search for a limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import CCAConfig, CodecError
from pipeline.codec.rates import (
    CLOSE,
    MOST_ENCODES,
    QUALITIES,
    Limit,
    parse_quality,
    rate_of_quality,
    search,
)

WEIGHTS = (32.0, 16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.25)
MODEL = CCAConfig(rate_weights=WEIGHTS)


def _stream(least: float, growth: float, bend: float, step: int) -> Callable[[float], bytes]:
    """Return an encoder whose bytes grow with the rate, in jumps of `step`."""

    def encode(rate: float) -> bytes:
        share = rate / (len(WEIGHTS) - 1)
        size = least * math.exp(growth * share**bend)
        return bytes(int(size) // step * step + step)

    return encode


ENCODERS = st.builds(
    _stream,
    least=st.floats(20, 5_000),
    growth=st.floats(0.2, 4),
    bend=st.floats(0.5, 2),
    step=st.sampled_from([1, 4, 64]),
)


@settings(max_examples=300, deadline=None)
@given(encode=ENCODERS, limit=st.integers(1, 200_000))
def test_the_search_keeps_to_the_limit_with_few_encodes(encode, limit: int) -> None:
    if len(encode(0.0)) > limit:
        with pytest.raises(CodecError, match=f"more than the limit of {limit}"):
            search(encode, MODEL, limit)
        return
    found = search(encode, MODEL, limit)
    assert len(found.data) == len(encode(found.rate)) <= limit
    assert found.encodes <= MOST_ENCODES + 1
    step = len(encode(min(found.rate + 0.01, 7.0))) - len(found.data)
    # Close to the limit, or at the highest rate, or just before a jump over it.
    assert len(found.data) >= CLOSE * limit or found.rate == 7 or len(found.data) + step > limit


@settings(max_examples=50, deadline=None)
@given(least=st.floats(100, 5_000), growth=st.floats(1, 4), limit=st.integers(6_000, 50_000))
def test_a_smooth_curve_takes_few_encodes_and_is_monotone(
    least: float, growth: float, limit: int
) -> None:
    encode = _stream(least, growth, 1.1, 1)
    found = search(encode, MODEL, limit)
    assert found.encodes <= 5
    assert search(encode, MODEL, int(limit / CLOSE) + 2).rate >= found.rate


def test_bytes_that_do_not_grow_steadily_keep_to_the_limit_too() -> None:
    def encode(rate: float) -> bytes:
        return bytes(int(1000 + 300 * rate + 400 * math.sin(9 * rate)))

    for limit in range(700, 4000, 150):
        try:
            assert len(search(encode, MODEL, limit).data) <= limit
        except CodecError:
            assert limit < len(encode(0.0))


def test_qualities_are_known_by_numbers_and_words() -> None:
    assert [parse_quality(word) for word in QUALITIES] == sorted(QUALITIES.values())
    assert parse_quality(" 62.5 ") == 62.5
    assert (rate_of_quality(MODEL, 0), rate_of_quality(MODEL, 100)) == MODEL.rates
    for bad in ("", "-1", "100.1", "nan", "inf", "best of all"):
        with pytest.raises(CodecError, match="from 0 to 100"):
            parse_quality(bad)
    with pytest.raises(CodecError, match="single rate"):
        rate_of_quality(CCAConfig(), 50)
    with pytest.raises(CodecError, match="single rate"):
        search(lambda rate: b"", CCAConfig(), 5)


def test_limits_are_bytes_or_bits_a_pixel() -> None:
    assert Limit(bytes=7).of(100, 100) == 7
    assert Limit(bits=0.5).of(100, 160) == 1000
    for bad in ({}, {"bytes": 1, "bits": 1.0}, {"bits": 0.0}, {"bits": math.inf}, {"bytes": 0}):
        with pytest.raises(CodecError, match="limit"):
            Limit(**bad)
