"""The sizes of a CCA model: the numbers that, with the weights, define it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.codec.config import (
    Config,
    Shape,
    as_tuple,
    check_integer,
    check_integers,
    check_slices,
    slice_sizes,
)
from pipeline.codec.errors import CodecError

# A latent has one value per 16 x 16 pixels, a hyper-latent one per 64 x 64.
LATENT_STRIDE = 16
HYPER_STRIDE = 64
RESIDUAL_BLOCKS = 3
# The margin of tiles where the convolutions reach no farther, as at the published size. Another
# margin would change the means inside the NAF blocks, and so the pixels of older files and the
# memory that decoding them takes.
_MARGIN = 128


@dataclass(frozen=True)
class CCAConfig(Config):
    """Sizes of a CCA model; the defaults are the published ones.

    Raises `CodecError` naming the field when a value is not usable.
    """

    architecture: ClassVar[str] = "cca"

    # M, the channels of the latent y.
    latent_channels: int = 320
    # S, the number of slices: groups of channels of y that are coded one after the other.
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
    # Whether linear paths of wavelets run beside the transforms (see `wavelets`).
    shortcuts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("transform_channels", "transform_blocks", "head_channels"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        check_integers("transform_channels", self.transform_channels, 3, least=2)
        check_integers("transform_blocks", self.transform_blocks, 3, least=0)
        check_integers("head_channels", self.head_channels, 2, least=1)
        for name in ("latent_channels", "context_channels", "hyper_latent_channels"):
            check_integer(name, getattr(self, name), least=1)
        check_integer("slices", self.slices, least=2)
        check_integer("context_blocks", self.context_blocks, least=0)
        if not isinstance(self.shortcuts, bool):
            raise CodecError(f"shortcuts must be true or false, not {self.shortcuts!r}")
        if any(width % 2 for width in self.transform_channels):
            raise CodecError(f"transform_channels must be even, not {self.transform_channels}")
        check_slices(self.latent_channels, self.slices, self.slice_exponent)

    @property
    def slice_sizes(self) -> tuple[int, ...]:
        """Channels of each slice: floor(M i^k / sum); the last slice takes the remainder."""
        return slice_sizes(self.latent_channels, self.slices, self.slice_exponent)

    @property
    def latent_stride(self) -> int:
        """Pixels of one position of y."""
        return LATENT_STRIDE

    @property
    def unit(self) -> int:
        """Pixels of one position of z."""
        return HYPER_STRIDE

    @property
    def reach(self) -> int:
        """Pixels around each pixel that the convolutions depend on.

        The means inside the NAF blocks, which run over all positions, are left out.
        """
        blocks = [RESIDUAL_BLOCKS + count for count in self.transform_blocks]
        # Analysis: a 5x5 convolution of stride 2 reaches 2 of its inputs, a block 1 (3x3).
        analysis = 2 << len(blocks)
        for level, count in enumerate(blocks):
            analysis += (1 + count) << (level + 1)
        # Synthesis, backwards from the pixels: the outputs of a transposed 5x5 convolution of
        # stride 2 within a distance r depend on its inputs within (r + 2) / 2.
        positions = 1
        for count in blocks:
            positions = -(-(positions + count + 2) // 2)
        return max(analysis, positions * LATENT_STRIDE)

    @property
    def margin(self) -> int:
        """Pixels around a tile that the transforms see.

        Models with at most the published number of blocks have 128: the outermost of the blended
        pixels then miss the edge of what they depend on.
        """
        return _MARGIN if self.reach <= _MARGIN else super().margin

    @property
    def bytes_per_pixel(self) -> int:
        """A bound on the activations' bytes per pixel; measured in docs/codec.md."""
        transforms = max(width / 4.0**i for i, width in enumerate(self.transform_channels, start=1))
        inputs = 2 * self.latent_channels
        context = (9 * inputs + 8 * self.context_channels) / LATENT_STRIDE**2
        return math.ceil(4 * 10 * transforms + 8 * 2 * context) + 64

    def noise_shapes(self, side: int) -> dict[str, Shape]:
        """Return the shapes of the noise for y, for z and, in the auxiliary model, for y again."""
        latent = (self.latent_channels, side // LATENT_STRIDE, side // LATENT_STRIDE)
        hyper = (self.hyper_latent_channels, side // HYPER_STRIDE, side // HYPER_STRIDE)
        return {"y": latent, "z": hyper, "aux_y": latent, "aux_factorized": latent}

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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values (tuples as lists), without empty rate weights.

        The architecture's name is left out, and so are absent shortcuts: files and fingerprints
        that are older than these fields lack them.
        """
        left_out = {"architecture"} if self.shortcuts else {"architecture", "shortcuts"}
        return {name: value for name, value in super().to_dict().items() if name not in left_out}
