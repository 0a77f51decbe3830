"""The sizes of a small model: the numbers that, with the weights, define it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from pipeline.codec.config import Config, Shape, check_integer, check_slices, slice_sizes
from pipeline.codec.errors import CodecError

# Pixels, across and down, of one position of the features, the latent and the hyper-latent.
PATCH = 8
LATENT_STRIDE = 16
HYPER_STRIDE = 64


@dataclass(frozen=True, kw_only=True)
class SmallConfig(Config):
    """Sizes of a small model; the defaults are those of the packaged codec.

    Raises `CodecError` naming the field when a value is not usable.
    """

    architecture: ClassVar[str] = "small"

    # M, the channels of the latent y.
    latent_channels: int = 256
    # S, the number of slices: groups of channels of y that are coded one after the other.
    slices: int = 5
    # k: slice i has a share of the channels proportional to i^k.
    slice_exponent: float = 1.7
    # At 1/8 of the picture's resolution: channels of the features, the number of blocks, and the
    # channels behind the blocks' gates.
    width: int = 128
    blocks: int = 4
    inner_width: int = 256
    # The number of blocks on the latent, and the channels behind their gates.
    latent_blocks: int = 2
    latent_inner_width: int = 96
    # Width and blocks of the context model.
    context_channels: int = 128
    context_blocks: int = 1
    # Width of the hyper networks, channels of the hyper-latent z.
    hyper_channels: int = 128
    hyper_latent_channels: int = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "latent_channels", "width", "inner_width", "latent_inner_width", "hyper_channels",
            "hyper_latent_channels",
        ):  # fmt: skip
            check_integer(name, getattr(self, name), least=1)
        check_integer("slices", self.slices, least=1)
        check_integer("context_channels", self.context_channels, least=2)
        for name in ("blocks", "latent_blocks", "context_blocks"):
            check_integer(name, getattr(self, name), least=0)
        if self.context_channels % 2:
            raise CodecError(f"context_channels must be even, not {self.context_channels}")
        check_slices(self.latent_channels, self.slices, self.slice_exponent)

    @property
    def slice_sizes(self) -> tuple[int, ...]:
        """Channels of each slice: floor(M i^k / sum); the last slice takes the remainder."""
        return slice_sizes(self.latent_channels, self.slices, self.slice_exponent)

    @property
    def vectors(self) -> int:
        """K, the number of rates that the model has vectors for; 1 for a single-rate model."""
        return max(1, len(self.rate_weights))

    @property
    def latent_stride(self) -> int:
        """Pixels, across and down, of one position of y."""
        return LATENT_STRIDE

    @property
    def unit(self) -> int:
        """Pixels, across and down, of one position of z."""
        return HYPER_STRIDE

    @property
    def reach(self) -> int:
        """Pixels beyond a tile that a transform depends on: one position for each block."""
        return self.blocks * PATCH + self.latent_blocks * LATENT_STRIDE + LATENT_STRIDE

    @property
    def bytes_per_pixel(self) -> int:
        """A bound on the memory of the networks' activations, per pixel of a tile."""
        features = (5 * self.width + 4 * self.inner_width) / PATCH**2
        latents = (5 * self.latent_channels + 4 * self.latent_inner_width) / LATENT_STRIDE**2
        seen = self.hyper_channels + 4 * self.latent_channels + 8 * self.context_channels
        return math.ceil(4 * (features + latents) + 8 * 2 * seen / LATENT_STRIDE**2) + 64

    def noise_shapes(self, side: int) -> dict[str, Shape]:
        """Return the shapes of the noise of a training pass over square crops of `side` pixels."""
        y, z = -(-side // HYPER_STRIDE) * 4, -(-side // HYPER_STRIDE)
        return {"y": (self.latent_channels, y, y), "z": (self.hyper_latent_channels, z, z)}

    @classmethod
    def tiny(cls) -> SmallConfig:
        """Return a size for tests and first trials."""
        return cls(
            latent_channels=48, slices=3, width=32, blocks=1, inner_width=32, latent_blocks=1,
            latent_inner_width=16, context_channels=32, hyper_channels=32, hyper_latent_channels=8,
        )  # fmt: skip
