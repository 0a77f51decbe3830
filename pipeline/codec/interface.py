"""The interface of models for coding: transforms that see a margin, a coder that sees a tile.

    pixels -> analyse -> y -> LatentCoder.encode -> words -> LatentCoder.decode -> y_hat
                                                             y_hat -> synthesise -> pixels

Shapes: M latent channels; h and w the positions of the latent y in a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from pipeline.codec.config import Config
from pipeline.codec.symbols import Words


@dataclass(frozen=True)
class CodedTile:
    """A tile's words, its decoded latent (1, M, h, w), float32, and a check.

    `check` is the running CRC-32 of all symbols so far.
    """

    words: Words
    y_hat: Tensor
    check: int


class LatentCoder(Protocol):
    """Turns the latent of one tile into words and back, equal to the last bit on any device."""

    def encode(self, y: Tensor, check: int = 0, rate: float | None = None) -> CodedTile:
        """Encode y (1, M, h, w), the output of the analysis, at one of the model's rates.

        h and w cover whole units of the config. `check` is that of the tile before. Raises
        `CodecError` for numbers that are not finite.
        """
        ...

    def decode(
        self,
        words: Words,
        height: int,
        width: int,
        check: int = 0,
        partial: bool = False,
        rate: float | None = None,
    ) -> CodedTile:
        """Decode `words` to the latent of a tile of `height` x `width` units of the config.

        With `partial`, words may be missing at the end, or all of them: latents that did not
        arrive take their predicted means. Raises `CodecError` when no encoder can have written the
        words.
        """
        ...


class Codec(Protocol):
    """What coding needs of a model; `pipeline.codec.model.Model` has it."""

    @property
    def config(self) -> Config:
        """The sizes of the model."""
        ...

    @property
    def fingerprint(self) -> str:
        """The hex digest by which streams name the model."""
        ...

    def analyse(self, x: Tensor, rate: float | None) -> Tensor:
        """Return the latent y (N, M, h, w) of pictures (N, 3, H, W) in [0, 1], whole units."""
        ...

    def synthesise(self, y_hat: Tensor, rate: float | None) -> Tensor:
        """Return the pictures (N, 3, H, W), not clamped, of latents (N, M, h, w) from the coder."""
        ...

    def coder(self) -> LatentCoder:
        """Return the coder of the latents, with the current weights."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights, which are all on one device."""
        ...
