"""The shape of a CCA model: the numbers that, with the weights, make it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from struct import pack, unpack
from typing import Any

from pipeline.codec.errors import CodecError

# A latent has one value per 16 x 16 pixels, a hyper-latent one per 64 x 64.
LATENT_STRIDE = 16
HYPER_STRIDE = 64
_LARGEST = 65_536
# What powers of the largest number of slices a float still holds.
_STEEPEST = 50
_MOST_RATES = 64


@dataclass(frozen=True)
class CCAConfig:
    """Sizes of a CCA model; the defaults are the published ones.

    Raises `CodecError` naming the field when a value is not usable.
    """

    # M, the channels of the latent y.
    latent_channels: int = 320
    # S, the parts in which the channels of y are coded, one after the other.
    slices: int = 5
    # k: slice i has a share of the channels proportional to i^k.
    slice_exponent: float = 1.7
    # Widths of the transforms at 1/2, 1/4 and 1/8 of the picture's resolution.
    transform_channels: tuple[int, int, int] = (192, 224, 256)
    # NAF blocks per resolution.
    transform_blocks: tuple[int, int, int] = (4, 4, 4)
    # Width and NAF blocks of the context model's supports.
    context_channels: int = 224
    context_blocks: int = 4
    # Channels of the hyper-latent z.
    hyper_latent_channels: int = 192
    # Widths inside the context model's heads.
    head_channels: tuple[int, int] = (224, 128)
    # Weights of the rate in the loss that one model has gains for, falling, so that the rate
    # rises: rate 0 is the first. Empty: the model has a single rate and no gains.
    rate_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("transform_channels", "transform_blocks", "head_channels", "rate_weights"):
            object.__setattr__(self, name, _tuple(name, getattr(self, name)))
        _check_tuple("transform_channels", self.transform_channels, 3, least=2)
        _check_tuple("transform_blocks", self.transform_blocks, 3, least=0)
        _check_tuple("head_channels", self.head_channels, 2, least=1)
        for name in ("latent_channels", "context_channels", "hyper_latent_channels"):
            _check_integer(name, getattr(self, name), least=1)
        _check_integer("slices", self.slices, least=2)
        _check_integer("context_blocks", self.context_blocks, least=0)
        _check_rate_weights(self.rate_weights)
        object.__setattr__(self, "rate_weights", tuple(map(float, self.rate_weights)))
        if any(width % 2 for width in self.transform_channels):
            raise CodecError(f"transform_channels must be even, not {self.transform_channels}")
        exponent = self.slice_exponent
        if not isinstance(exponent, int | float) or not 0 <= exponent <= _STEEPEST:
            raise CodecError(
                f"slice_exponent must be a number from 0 to {_STEEPEST}, not {exponent!r}"
            )
        if min(self.slice_sizes) < 1:
            raise CodecError(
                f"{self.slices} slices of {self.latent_channels} latent channels with exponent "
                f"{exponent} leave a slice empty; take fewer slices or more channels"
            )

    @property
    def slice_sizes(self) -> tuple[int, ...]:
        """Channels of each slice: floor(M i^k / sum), the last one takes the remainder."""
        shares = [i**self.slice_exponent for i in range(1, self.slices + 1)]
        sizes = [int(self.latent_channels * share / sum(shares)) for share in shares[:-1]]
        return (*sizes, self.latent_channels - sum(sizes))

    @property
    def rates(self) -> tuple[float, float] | None:
        """The lowest and the highest rate that can be asked for; None: there is but one."""
        return (0.0, float(len(self.rate_weights) - 1)) if self.rate_weights else None

    def check_rate(self, rate: float | None) -> float | None:
        """Return `rate` as a stream states it (float32); None: the middle, if there are several.

        Raises `CodecError` when it is outside of `rates`, or given where there is but one.
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
        """Return the rate weight that `rate` (from 0 to K - 1) stands for, as gains do between."""
        lower = min(int(rate), len(self.rate_weights) - 2)
        below, above = self.rate_weights[lower : lower + 2]
        return float(below ** (1 - (rate - lower)) * above ** (rate - lower))

    @classmethod
    def tiny(cls) -> CCAConfig:
        """Return a size that trains on two CPU cores in minutes, for demos and tests."""
        return cls(
            latent_channels=48,
            slices=4,
            transform_channels=(16, 32, 48),
            transform_blocks=(0, 1, 1),
            context_channels=32,
            context_blocks=1,
            hyper_latent_channels=16,
            head_channels=(32, 24),
        )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> CCAConfig:
        """Make a config of `mapping`; unknown fields and unusable values raise `CodecError`."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(name) for name in mapping if name not in known)
        if unknown:
            raise CodecError(
                f"a model has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        return cls(**mapping)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values (tuples as lists), no rate weights if none."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            # Left out, a model with a single rate keeps the fingerprint that it always had.
            if name != "rate_weights" or value
        }


def _tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise CodecError(f"{name} must be a list of numbers, not {value!r}")
    return tuple(value)


def _check_rate_weights(weights: tuple[Any, ...]) -> None:
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights)
    if not numbers or not all(0 < weight <= _LARGEST for weight in weights):
        raise CodecError(f"rate_weights must be numbers from 0 to {_LARGEST}, not {list(weights)}")
    falling = all(before > after for before, after in pairwise(weights))
    if weights and (not falling or not 2 <= len(weights) <= _MOST_RATES):
        raise CodecError(
            f"rate_weights must be 2 to {_MOST_RATES} falling numbers, or none, not {list(weights)}"
        )


def _check_tuple(name: str, value: tuple[Any, ...], length: int, least: int) -> None:
    if len(value) != length:
        raise CodecError(f"{name} must have {length} numbers, not {len(value)}")
    for entry in value:
        _check_integer(name, entry, least)


def _check_integer(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= _LARGEST:
        raise CodecError(f"{name} must be a whole number from {least} to {_LARGEST}, not {value!r}")
