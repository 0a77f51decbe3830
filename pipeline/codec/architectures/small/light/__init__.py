"""The small model without torch: networks in numpy, the exact ones equal to the last bit."""

from __future__ import annotations

import numpy as np

from pipeline.codec.architectures.small.config import SmallConfig
from pipeline.codec.architectures.small.light.coder import LightCoder
from pipeline.codec.architectures.small.light.networks import (
    Analysis,
    Floats,
    HyperAnalysis,
    Rate,
    Synthesis,
)
from pipeline.codec.architectures.small.light.shapes import shapes
from pipeline.codec.light.form import LightForm, Weights
from pipeline.codec.scales import Scales
from pipeline.codec.symbols import Words

__all__ = ["FORM", "LightSmall"]


class LightSmall:
    """The networks of a small model; see `pipeline.codec.light.form.LightNetworks`."""

    def __init__(self, config: SmallConfig, weights: Weights, scales: Scales) -> None:
        self._config = config
        self._analysis = Analysis(weights, config)
        self._hyper_analysis = HyperAnalysis(weights)
        self._synthesis = Synthesis(weights, config)
        self.coder = LightCoder(weights, config, scales)

    def encode(self, x: Floats, rate: float | None) -> tuple[Words, int]:
        """Return the words of a picture x (H, W, 3), and the CRC-32 of their symbols."""
        at = Rate.of(rate, self._config.vectors)
        y = self._analysis(x, at)
        z = self._hyper_analysis(y, at) / self.coder.z_step(at).astype(np.float32)
        return self.coder.encode(y, z, rate)

    def decode(self, words: Words, size: tuple[int, int], rate: float | None) -> tuple[Floats, int]:
        """Return the latent (h, w, M) of `words`, and the CRC-32 of their symbols."""
        return self.coder.decode(words, size, rate)

    def synthesise(self, y_hat: Floats, rate: float | None) -> Floats:
        """Return the picture (H, W, 3) of a latent."""
        return self._synthesis(y_hat, Rate.of(rate, self._config.vectors))


FORM = LightForm(shapes, LightSmall)
