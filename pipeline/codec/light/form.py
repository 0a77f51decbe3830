"""The interface of an architecture's networks without torch.

Shapes: pictures x are float32 (H, W, 3) in [0, 1], whole units of the config; latents (h, w, M).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.codec.scales import Scales
from pipeline.codec.symbols import Words

Floats = npt.NDArray[Any]
# Weights by their names in the model.
Weights = Mapping[str, npt.NDArray[np.float32]]


class LightNetworks(Protocol):
    """Networks for pictures of one tile, whose words and latents equal the torch model's."""

    def encode(self, x: Floats, rate: float | None) -> tuple[Words, int]:
        """Return the words of a picture, and the CRC-32 of their symbols."""
        ...

    def decode(self, words: Words, size: tuple[int, int], rate: float | None) -> tuple[Floats, int]:
        """Return the latent of `words`, float32, and the CRC-32 of their symbols.

        `size` is the number of units down and across. Raises `CodecError` when no encoder wrote
        the words.
        """
        ...

    def synthesise(self, y_hat: Floats, rate: float | None) -> Floats:
        """Return the picture of a latent, not clamped."""
        ...


@dataclass(frozen=True)
class LightForm:
    """How to make a model without torch; both functions take its config.

    `shapes` returns the shape of each weight by name. `networks` also takes the weights and the
    scales of layers by name, and raises `KeyError` if a scale is missing; without any scales, the
    exact networks compute in float64.
    """

    shapes: Callable[[Any], Mapping[str, tuple[int, ...]]]
    networks: Callable[[Any, Weights, Scales], LightNetworks]
