"""The shape of a CCA model: the numbers that, with the weights, make it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

from pipeline.codec.errors import CodecError

# A latent has one value per 16 x 16 pixels, a hyper-latent one per 64 x 64.
LATENT_STRIDE = 16
HYPER_STRIDE = 64
_LARGEST = 65_536


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

    def __post_init__(self) -> None:
        for name in ("transform_channels", "transform_blocks", "head_channels"):
            object.__setattr__(self, name, _tuple(name, getattr(self, name)))
        _check_tuple("transform_channels", self.transform_channels, 3, least=2)
        _check_tuple("transform_blocks", self.transform_blocks, 3, least=0)
        _check_tuple("head_channels", self.head_channels, 2, least=1)
        for name in ("latent_channels", "context_channels", "hyper_latent_channels"):
            _check_integer(name, getattr(self, name), least=1)
        _check_integer("slices", self.slices, least=2)
        _check_integer("context_blocks", self.context_blocks, least=0)
        if any(width % 2 for width in self.transform_channels):
            raise CodecError(f"transform_channels must be even, not {self.transform_channels}")
        exponent = self.slice_exponent
        if not isinstance(exponent, int | float) or not (isfinite(exponent) and exponent >= 0):
            raise CodecError(f"slice_exponent must be a number from 0 up, not {exponent!r}")
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
        """Return the fields as plain JSON values (tuples as lists)."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def _tuple(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise CodecError(f"{name} must be a list of whole numbers, not {value!r}")
    return tuple(value)


def _check_tuple(name: str, value: tuple[Any, ...], length: int, least: int) -> None:
    if len(value) != length:
        raise CodecError(f"{name} must have {length} numbers, not {len(value)}")
    for entry in value:
        _check_integer(name, entry, least)


def _check_integer(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= _LARGEST:
        raise CodecError(f"{name} must be a whole number from {least} to {_LARGEST}, not {value!r}")
