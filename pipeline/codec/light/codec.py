"""A model that compresses and decompresses pictures of one tile, in numpy.

Shapes: pictures are float32 (H, W, 3) in [0, 1].
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.codec.bitstream import Header, Stream, write_stream
from pipeline.codec.errors import MISMATCH, CodecError, MismatchError
from pipeline.codec.light.form import Floats
from pipeline.codec.light.weights import Stored, read_stored
from pipeline.codec.matching import check_model

if TYPE_CHECKING:
    from pipeline.codec.model import Model

# Beyond this many pixels torch is faster: its networks make up for its slower start.
MAX_PIXELS = 2**21


class LightModel:
    """A model for pictures of one tile."""

    def __init__(self, file: Path, stored: Stored) -> None:
        self.file = file
        self.config, self.fingerprint = stored.config, stored.fingerprint
        self._with_torch: Model | None = None
        self.networks = stored.form.networks(stored.config, stored.weights, stored.scales)

    def takes(self, height: int, width: int) -> bool:
        """Tell whether a picture is small enough to be coded sooner without torch."""
        return height * width <= MAX_PIXELS

    def with_torch(self) -> Model:
        """Load the same model with torch, which takes any picture.

        Raises `CodecError` when its file holds another model by now.
        """
        if self._with_torch is None:
            from pipeline.codec.storage import load_model

            model = load_model(self.file)
            if model.fingerprint != self.fingerprint:
                raise CodecError(f"{self.file} was replaced by another model while it was in use")
            self._with_torch = model
        return self._with_torch

    def compress(
        self, x: Floats, header: Header, side: dict[str, bytes], rate: float | None = None
    ) -> bytes:
        """Return the stream of the picture x (H, W, 3), as `pipeline.codec.coding.compress` does.

        Raises `CodecError` for a rate that the model does not have.
        """
        height, width, _ = x.shape
        rate = self.config.check_rate(rate)
        header = replace(
            header, width=width, height=height, fingerprint=self.fingerprint[:16], tile=0, rate=rate
        )
        down, right = -height % self.config.unit, -width % self.config.unit
        padded = np.pad(x, ((0, down), (0, right), (0, 0)), mode="edge")
        words, check = self.networks.encode(padded, rate)
        return write_stream(header, side, [words], check)

    def decompress(self, stream: Stream) -> Floats:
        """Return the picture (H, W, 3) of a whole stream of one tile.

        Raises `CodecError` when it is of another model, and `MismatchError` when it decodes to
        other symbols than were encoded.
        """
        header, unit = stream.header, self.config.unit
        check_model(self, header)
        if header.tile or not stream.complete:
            raise CodecError("a picture of several tiles or a cut one needs torch")
        size = -(-header.height // unit), -(-header.width // unit)
        try:
            y_hat, check = self.networks.decode(stream.tiles[0], size, header.rate)
        except CodecError as error:
            # The checksums of a whole file match, so its words are not damaged.
            raise MismatchError(MISMATCH) from error
        if check != stream.symbol_check:
            raise MismatchError(MISMATCH)
        pixels = self.networks.synthesise(y_hat, header.rate)
        picture: Floats = np.clip(pixels[: header.height, : header.width], 0, 1)
        return picture


@lru_cache(maxsize=2)
def light_model(file: Path) -> LightModel | None:
    """Return the model in `file` without torch; None if it has no such form."""
    stored = read_stored(file)
    try:
        return None if stored is None else LightModel(file, stored)
    except (KeyError, CodecError):  # bad scales, which `load_model` explains
        return None


def model_for(file: Path, device: str = "cpu") -> LightModel | None:
    """Return the model in `file` without torch, if that is the quickest way.

    None if torch is loaded already, the device is not the CPU, or the model has no such form: use
    `pipeline.codec.load_model` then.
    """
    if "torch" in sys.modules or device != "cpu":
        return None
    return light_model(file)
