"""Chooses the rate of a picture: by a quality in words or numbers, by bits per pixel, or by bytes.

A model with several rates codes at any real number between its lowest and highest rate. A quality
from 0 to 100 stands for one of these rates. For a limit of bytes, the highest rate that keeps to it
is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.codec.config import Config
from pipeline.codec.errors import CodecError

QUALITIES = {"lowest": 0.0, "low": 25.0, "medium": 50.0, "high": 75.0, "highest": 100.0}
# A search ends with a file of at least this share of the limit, or after so many encodes.
CLOSE = 0.98
MOST_ENCODES = 16
# The share of the limit that a step aims at, to land close below the limit.
_AIM = 0.99
# The finest step of a search, as a share of the model's range of rates.
_FINEST = 2.0**-12
# The number of encodes by interpolation; later ones bisect.
_PATIENCE = 4
# A first guess of the logarithm of (bytes at the highest rate / bytes at the lowest).
_GROWTH = 2.3


@dataclass(frozen=True)
class Limit:
    """The most bytes that a file may have: as `bytes`, or as `bits` for each pixel.

    Raises `CodecError` unless exactly one of them is given, as a positive number.
    """

    bytes: int | None = None
    bits: float | None = None

    def __post_init__(self) -> None:
        if (self.bytes is None) == (self.bits is None):
            raise CodecError("a limit is given either in bytes or in bits per pixel")
        number = self.bytes if self.bits is None else self.bits
        if not (number is not None and math.isfinite(number) and number > 0):
            unit = "bytes" if self.bits is None else "bits per pixel"
            raise CodecError(f"a limit in {unit} must be a number above 0, not {number:g}")

    def of(self, height: int, width: int) -> int:
        """Return the most bytes that the file of a picture of this size may have."""
        if self.bytes is not None:
            return self.bytes
        assert self.bits is not None
        return int(self.bits * height * width / 8)

    def __str__(self) -> str:
        return f"{self.bytes} bytes" if self.bits is None else f"{self.bits:g} bits per pixel"


@dataclass(frozen=True)
class Searched:
    """A stream that keeps to a limit: its bytes, its rate, and the encodes that the search took."""

    data: bytes
    rate: float
    encodes: int


def parse_quality(text: str) -> float:
    """Return the quality, from 0 to 100, that `text` names; other texts raise `CodecError`."""
    word = text.strip().lower()
    if word in QUALITIES:
        return QUALITIES[word]
    try:
        quality = float(word)
    except ValueError:
        quality = math.nan
    if not 0 <= quality <= 100:
        raise CodecError(
            f"the quality must be a number from 0 to 100, or one of {', '.join(QUALITIES)}, "
            f"not {text!r}"
        )
    return quality


def rate_of_quality(config: Config, quality: float) -> float:
    """Return the rate of a quality from 0 (the model's lowest rate) to 100 (its highest).

    Raises `CodecError` for a quality outside of that range, or a model with a single rate.
    """
    lowest, highest = _range(config, "a quality")
    if not 0 <= quality <= 100:
        raise CodecError(f"the quality must be a number from 0 to 100, not {quality:g}")
    return lowest + (highest - lowest) * quality / 100


def search(encode: Callable[[float], bytes], config: Config, limit: int) -> Searched:
    """Return the best stream of at most `limit` bytes.

    `encode` returns the stream at a rate. Rates are tried by interpolating the logarithm of the
    bytes between the nearest stream that fits and the nearest that does not, until one has at
    least `CLOSE` of the limit. If bytes grow with the rate, a higher limit never gives a lower rate
    beyond that margin.

    Raises `CodecError` when even the lowest rate takes more, or the model has a single rate.
    """
    lowest, highest = _range(config, "a limit")
    tried: dict[float, bytes] = {}
    rate = (lowest + highest) / 2
    while len(tried) < MOST_ENCODES:
        tried[rate] = encode(rate)
        if CLOSE * limit <= len(tried[rate]) <= limit:
            break
        following = _following(tried, limit, (lowest, highest))
        if following is None:
            break
        rate = following
    if all(len(data) > limit for data in tried.values()) and lowest not in tried:
        tried[lowest] = encode(lowest)
    fitting = {rate: data for rate, data in tried.items() if len(data) <= limit}
    if not fitting:
        least = min(map(len, tried.values()))
        raise CodecError(
            f"it takes {least} bytes at the model's lowest rate, more than the limit of {limit}"
        )
    best = max(fitting)
    return Searched(fitting[best], best, len(tried))


def _following(tried: dict[float, bytes], limit: int, ends: tuple[float, float]) -> float | None:
    """Return the next rate to try; None if none is left between those that fit and the others."""
    sizes = {rate: math.log(max(1, len(data))) for rate, data in tried.items()}
    below = max((rate for rate, data in tried.items() if len(data) <= limit), default=None)
    above = min(
        (r for r, d in tried.items() if len(d) > limit and (below is None or r > below)),
        default=None,
    )
    if below == ends[1] or above == ends[0]:
        return None
    low, high = (ends[0] if below is None else below), (ends[1] if above is None else above)
    least = _FINEST * (ends[1] - ends[0])
    if below is not None and above is not None and high - low <= 2 * least:
        return None
    if below is not None and above is not None:
        slope = (sizes[above] - sizes[below]) / (above - below)
    else:
        slope = _slope(sizes, ends)
    start = below if below is not None else above
    assert start is not None
    guess = start + (math.log(max(1.0, _AIM * limit)) - sizes[start]) / max(slope, 1e-9)
    # No rate is tried twice. An end that was not tried may be, and is jumped to.
    if below is not None:
        low += least
    if above is not None:
        high -= least
    if len(tried) >= _PATIENCE:  # where bytes jump, interpolation does not converge: bisect
        guess = low if below is None else high if above is None else (low + high) / 2
    return _on_grid(min(max(guess, low), high), ends)


def _on_grid(rate: float, ends: tuple[float, float]) -> float:
    """Return the nearest rate that a stream states exactly, as a float32."""
    step = _FINEST * (ends[1] - ends[0])
    return ends[0] + round((rate - ends[0]) / step) * step


def _slope(sizes: dict[float, float], ends: tuple[float, float]) -> float:
    """Return how the logarithm of bytes grows with the rate, as far as the tried rates tell."""
    if len(sizes) > 1:
        (low, first), (high, second) = sorted(sizes.items())[:: len(sizes) - 1]
        if second > first:
            return (second - first) / (high - low)
    return _GROWTH / (ends[1] - ends[0])


def _range(config: Config, what: str) -> tuple[float, float]:
    if config.rates is None:
        raise CodecError(
            f"the model has a single rate, so {what} can't be chosen: leave it out, or take a "
            "model that was trained for several (docs/training.md)"
        )
    return config.rates
