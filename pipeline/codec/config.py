"""The base of all configs: the numbers that, with the weights, define a model.

An architecture's own config is a frozen dataclass that extends `Config`. It tells the codec sizes
in pixels (strides, reach), memory, and the shapes of training noise; no other part of the codec
holds constants of an architecture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from struct import pack, unpack
from typing import Any, ClassVar, Self

from pipeline.codec.errors import CodecError

# The largest width, count or rate weight that a config may name.
LARGEST = 65_536
_MOST_RATES = 64
# The largest slice exponent: powers of the number of slices stay within a float.
_STEEPEST = 50
# Neighbouring tiles are blended over this many pixels on either side of their border.
BLEND = 32

# Channels, height and width of one array of numbers.
Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Config(ABC):
    """Sizes of a model. Raises `CodecError` naming the field when a value is not usable."""

    # The name of the architecture, by which files and recipes choose it.
    architecture: ClassVar[str]

    # The rate weights of the loss that one model has gains for, falling, so that the bits rise:
    # rate 0 is the first. Empty for a model with a single rate and no gains.
    rate_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        weights = as_tuple("rate_weights", self.rate_weights)
        _check_rate_weights(weights)
        object.__setattr__(self, "rate_weights", tuple(map(float, weights)))

    @property
    @abstractmethod
    def latent_stride(self) -> int:
        """Pixels, across and down, of one position of the latent y."""

    @property
    @abstractmethod
    def unit(self) -> int:
        """Pixels, across and down, of one position of the coarsest latent.

        Pictures are padded to multiples of it. It is a multiple of `latent_stride`.
        """

    @property
    @abstractmethod
    def reach(self) -> int:
        """The largest distance, in pixels, at which analysis or synthesis depends on its input."""

    @property
    @abstractmethod
    def bytes_per_pixel(self) -> int:
        """A bound on the memory of the networks' activations, per pixel of a tile."""

    @abstractmethod
    def noise_shapes(self, side: int) -> dict[str, Shape]:
        """Return the shape of each array of noise in a training pass, in the order of drawing.

        `side` is the side of the square crop, in pixels.
        """

    @property
    def margin(self) -> int:
        """Pixels around a tile that the transforms see, in whole units.

        It covers `reach` and the blended band, so a tile's border does not affect convolutions.
        """
        return -(-(self.reach + BLEND) // self.unit) * self.unit

    @property
    def rates(self) -> tuple[float, float] | None:
        """The lowest and the highest rate of the model; None if it has a single rate."""
        return (0.0, float(len(self.rate_weights) - 1)) if self.rate_weights else None

    def check_rate(self, rate: float | None) -> float | None:
        """Return `rate` as a stream states it (float32); None means the middle of `rates`.

        Raises `CodecError` when it is outside of `rates`, or given for a single-rate model.
        """
        if self.rates is None:
            if rate is not None:
                raise CodecError(
                    f"the model has a single rate, so {rate:g} can't be chosen: leave the rate "
                    "out, or take a model that was trained for several (docs/training.md)"
                )
            return None
        lowest, highest = self.rates
        rate = (lowest + highest) / 2 if rate is None else rate
        if not lowest <= rate <= highest:
            raise CodecError(
                f"the rate must be a number from {lowest:g} (fewest bits) to {highest:g} (most) "
                f"with this model, not {rate:g}"
            )
        return float(unpack("<f", pack("<f", rate))[0])

    def rate_weight_at(self, rate: float) -> float:
        """Return the rate weight at `rate` (from 0 to K - 1), interpolated as the gains are."""
        lower = min(int(rate), len(self.rate_weights) - 2)
        below, above = self.rate_weights[lower : lower + 2]
        return float(below ** (1 - (rate - lower)) * above ** (rate - lower))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Make a config from `mapping`; unknown fields and unusable values raise `CodecError`."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(name) for name in mapping if name not in known)
        if unknown:
            raise CodecError(
                f"a model has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        return cls(**mapping)

    def to_dict(self) -> dict[str, Any]:
        """Return the architecture's name and the fields as plain JSON values (tuples as lists).

        The fingerprint covers it. Empty `rate_weights` are left out.
        """
        return {
            "architecture": self.architecture,
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(self).items()
                if name != "rate_weights" or value
            },
        }


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """Return the value of the field `name` as a tuple; raise `CodecError` if it is no list."""
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise CodecError(f"{name} must be a list of numbers, not {value!r}")
    return tuple(value)


def check_integers(name: str, value: tuple[Any, ...], length: int, least: int) -> None:
    """Raise `CodecError` unless the field `name` has `length` whole numbers from `least` up."""
    if len(value) != length:
        raise CodecError(f"{name} must have {length} numbers, not {len(value)}")
    for entry in value:
        check_integer(name, entry, least)


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise `CodecError` unless the field `name` is a whole number from `least` to `LARGEST`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= LARGEST:
        raise CodecError(f"{name} must be a whole number from {least} to {LARGEST}, not {value!r}")


def slice_sizes(channels: int, slices: int, exponent: float) -> tuple[int, ...]:
    """Return each slice's channels: floor(M i^k / sum); the last slice takes the remainder."""
    shares = [i**exponent for i in range(1, slices + 1)]
    sizes = [int(channels * share / sum(shares)) for share in shares[:-1]]
    return (*sizes, channels - sum(sizes))


def check_slices(channels: int, slices: int, exponent: Any) -> None:
    """Raise `CodecError` unless each of `slices` slices gets a channel of the latent."""
    if not isinstance(exponent, int | float) or not 0 <= exponent <= _STEEPEST:
        raise CodecError(f"slice_exponent must be a number from 0 to {_STEEPEST}, not {exponent!r}")
    if min(slice_sizes(channels, slices, exponent)) < 1:
        raise CodecError(
            f"{slices} slices of {channels} latent channels with exponent {exponent} leave a slice"
            " empty; take fewer slices or more channels"
        )


def _check_rate_weights(weights: tuple[Any, ...]) -> None:
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights)
    if not numbers or not all(0 < weight <= LARGEST for weight in weights):
        raise CodecError(f"rate_weights must be numbers from 0 to {LARGEST}, not {list(weights)}")
    falling = all(before > after for before, after in pairwise(weights))
    if weights and (not falling or not 2 <= len(weights) <= _MOST_RATES):
        raise CodecError(
            f"rate_weights must be 2 to {_MOST_RATES} falling numbers, or none, not {list(weights)}"
        )
