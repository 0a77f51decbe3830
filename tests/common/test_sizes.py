"""One grammar of sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import UsageError
from pipeline.common.sizes import LARGEST, in_mebibytes, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("1GiB", 2**30),
        ("128g", 128 * 2**30),
        ("1T", 2**40),
        ("100KB", 10**5),
        (" 1.5 mb ", 1_500_000),
        (".5K", 512),
        ("4096", 4096),
        ("7B", 7),
        (4096, 4096),
        ("0.1PB", 10**14),  # which floats miss
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("-1GB", "-1", "", "GB", "1 2GB", "1e9", "nan", "inf", "1XB", "1GBB", "1iB", "1,5GB"),
        *("٣GB", "0", "0.0001", "0KB", "9" * 30, "1000EB", "1G\n2", "1\0"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="--max-memory") as told:
        parse_size(text, "--max-memory")
    assert "\n" not in str(told.value)


@given(st.text())
def test_any_text_is_a_size_or_is_refused(text: str) -> None:
    try:
        size = parse_size(text)
    except UsageError:
        return
    assert 1 <= size <= LARGEST


@given(st.integers(1, 2**23 - 1), st.sampled_from(["", "K", "M", "G", "T"]))
def test_letters_count_by_1024_and_letters_with_b_by_1000(number: int, letter: str) -> None:
    power = " KMGT".index(letter or " ")
    assert parse_size(f"{number}{letter}") == number * 1024**power
    assert parse_size(f"{number}{letter}B") == number * 1000**power


@given(st.integers(1, LARGEST))
def test_mebibytes_hold_the_size(size: int) -> None:
    assert (in_mebibytes(size) - 1) << 20 < size <= in_mebibytes(size) << 20
