"""Where a model spends its bits: by latent position and by group, from its own likelihoods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codec import Model

# The side of the blocks that a picture is processed in, in pixels, before rounding to units.
BLOCK = 1024


@dataclass(frozen=True)
class RateMap:
    """Bits of a picture as the model estimates them.

    `y` (h, w), float32, has the bits of all channels at each latent position that covers pixels of
    the picture. `groups` has the bits of each group of y that is coded at once, by its name, in the
    order of coding. `side_bits` are the bits of the other latents (hyper-latents).
    """

    y: NDArray[np.float32]
    groups: dict[str, float]
    side_bits: float

    @property
    def bits(self) -> float:
        """All bits of the picture."""
        return sum(self.groups.values()) + self.side_bits


def rate_map(model: Model, x: Tensor, rate: float | None = None) -> RateMap:
    """Return the bits of picture `x` (1, 3, H, W) in [0, 1], at one of the model's rates.

    The model pads below and to the right; the bits of the padding are in the sums, not on the map.
    A picture with a side above 1,024 pixels is processed in blocks, to bound the memory.
    """
    side = -(-BLOCK // model.config.unit) * model.config.unit
    rows = [
        [_block(model, part, rate) for part in torch.split(strip, side, dim=3)]
        for strip in torch.split(x, side, dim=2)
    ]
    blocks = [block for row in rows for block in row]
    return RateMap(
        y=np.block([[block.y for block in row] for row in rows]),
        groups={name: sum(b.groups[name] for b in blocks) for name in blocks[0].groups},
        side_bits=sum(block.side_bits for block in blocks),
    )


def _block(model: Model, x: Tensor, rate: float | None) -> RateMap:
    with torch.inference_mode():
        likelihoods = model(x, rate=rate).likelihoods
    bits = {name: -torch.log2(p.double()) for name, p in likelihoods.items()}
    height, width = (-(-side // model.config.latent_stride) for side in x.shape[2:])
    plane = bits["y"].sum(dim=(0, 1))[:height, :width]
    return RateMap(
        y=plane.float().cpu().numpy(),
        groups={name: float(part.sum()) for name, part in model.group_bits(bits["y"]).items()},
        side_bits=sum(float(part.sum()) for name, part in bits.items() if name != "y"),
    )
