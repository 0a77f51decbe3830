"""Where a model spends its bits: by latent position and by slice, from its own likelihoods."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codec import CCAModel

LATENT_STRIDE, HYPER_STRIDE = 16, 64


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
    """
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
