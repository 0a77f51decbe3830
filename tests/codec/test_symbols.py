"""Entropy coding: what goes in comes out, at the cost that the tables promise."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.codec import CodecError
from pipeline.codec.symbols import (
    LARGEST_SYMBOL,
    SCALE_LEVELS,
    SCALE_STEPS,
    SymbolDecoder,
    SymbolEncoder,
    Table,
    gaussian_tables,
    scale_index,
)

TABLES = gaussian_tables()
symbols = st.one_of(
    st.integers(-3, 3), st.integers(-2000, 2000), st.integers(-LARGEST_SYMBOL, LARGEST_SYMBOL)
)


@given(st.data(), st.integers(0, 200))
@settings(deadline=None)
def test_symbols_come_back(data: st.DataObject, count: int) -> None:
    values = data.draw(arrays.arrays(np.int32, count, elements=symbols))
    index = data.draw(arrays.arrays(np.uint8, count, elements=st.integers(0, len(TABLES) - 1)))
    encoder = SymbolEncoder()
    encoder.encode(values, index, TABLES)
    encoder.encode(values[:7], index[:7], TABLES)
    decoder = SymbolDecoder(encoder.words)
    assert np.array_equal(decoder.decode(index, TABLES), values)
    assert np.array_equal(decoder.decode(index[:7], TABLES), values[:7])


def test_rate_is_the_entropy() -> None:
    rng = np.random.default_rng(0)
    scales = np.exp(rng.normal(-0.5, 1.2, 300_000)).clip(0.11, 200)
    values = np.rint(rng.normal(0, scales)).astype(np.int32)
    from scipy.special import ndtr

    distance = np.abs(values)
    masses = ndtr((0.5 - distance) / scales) - ndtr((-0.5 - distance) / scales)
    ideal = -np.log2(np.maximum(masses, 1e-9)).sum()
    encoder = SymbolEncoder()
    encoder.encode(values, scale_index()[(scales * SCALE_STEPS).astype(int)], TABLES)
    assert 32 * len(encoder.words) < 1.003 * ideal


def test_scales_get_the_nearest_level() -> None:
    index = scale_index()
    scales = np.arange(len(index)) / SCALE_STEPS
    assert (np.diff(index.astype(int)) >= 0).all()
    wanted = np.abs(np.log(scales[1:, None] / SCALE_LEVELS[None])).argmin(1)
    above = scales[1:] > SCALE_LEVELS[0]
    assert (np.abs(wanted[above] - index[1:][above]) <= 0).all()
    assert (index[1:][~above] == 0).all()


def test_damaged_words_end_in_an_error_or_other_symbols() -> None:
    index = np.full(500, 60, np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(50):
        words = rng.integers(0, 2**32, rng.integers(0, 30), dtype=np.uint32)
        try:
            found = SymbolDecoder(words).decode(index, TABLES)
        except CodecError:
            continue
        assert found.shape == (500,)


def test_densities_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CodecError, match="not finite"):
        Table.of(0, np.array([0.5, np.nan]))


def test_tables_are_the_same_everywhere() -> None:
    # A stream's meaning hangs on these numbers: they may change with the format's version only.
    digest = hashlib.sha256()
    for table in TABLES:
        encoder = SymbolEncoder()
        span = np.arange(table.first, table.first + table.count, dtype=np.int32)
        encoder.encode(span, np.zeros(len(span), np.uint8), [table])
        digest.update(encoder.words.astype("<u4").tobytes())
    assert digest.hexdigest()[:16] == "83f47f93eeae53cb"
