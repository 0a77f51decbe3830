"""Where a model spends its bits: by latent position and by slice, from its own likelihoods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codec import CCAModel

LATENT_STRIDE, HYPER_STRIDE = 16, 64
# A multiple of both strides, in pixels.
BLOCK = 1024


@dataclass(frozen=True)
class RateMap:
    """Bits of a picture as the model estimates them.

    `y`: (ceil(H/16), ceil(W/16)) float32, bits of the latent at each position, all channels;
    `slices`: bits of each slice of y; `z_bits`: bits of the hyper-latent.
    """

    y: NDArray[np.float32]
    slices: tuple[float, ...]
    z_bits: float


def rate_map(model: CCAModel, x: Tensor, rate: float | None = None) -> RateMap:
    """Return where the bits of picture `x` (1, 3, H, W) in [0, 1] go, at one of the model's rates.

    The model pads below and to the right; what is spent there is in the sums, not on the map.
    A picture with a side above 1,024 pixels is gone through in blocks, for bounded memory.
    """
    rows = [
        [_block(model, part, rate) for part in torch.split(strip, BLOCK, dim=3)]
        for strip in torch.split(x, BLOCK, dim=2)
    ]
    blocks = [block for row in rows for block in row]
    return RateMap(
        y=np.block([[block.y for block in row] for row in rows]),
        slices=tuple(map(sum, zip(*(block.slices for block in blocks), strict=True))),
        z_bits=sum(block.z_bits for block in blocks),
    )


def _block(model: CCAModel, x: Tensor, rate: float | None) -> RateMap:
    with torch.inference_mode():
        likelihoods = model(x, rate=rate).likelihoods
    bits = {name: -torch.log2(p.double()) for name, p in likelihoods.items()}
    height, width = (-(-side // LATENT_STRIDE) for side in x.shape[2:])
    slices = torch.split(bits["y"], list(model.config.slice_sizes), dim=1)
    plane = bits["y"].sum(dim=(0, 1))[:height, :width]
    return RateMap(
        y=plane.float().cpu().numpy(),
        slices=tuple(float(part.sum()) for part in slices),
        z_bits=float(bits["z"].sum()),
    )
