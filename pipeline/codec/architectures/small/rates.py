"""The parameters that change with the rate: quantisation steps, and vectors inside the blocks.

They are learned for K rates, numbered from 0, and interpolated linearly between two neighbours
(steps by their logarithms), so that a rate R is any real number from 0 to K - 1.

Shapes: N batch, K rates, M latent channels, Z hyper-latent channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.codec.architectures.small.config import SmallConfig


class Steps(nn.Module):
    """The logarithms of the quantisation steps of the K rates: (K, M) of y, (K, Z) of z."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.y = nn.Parameter(torch.zeros(config.vectors, config.latent_channels))
        self.z = nn.Parameter(torch.zeros(config.vectors, config.hyper_latent_channels))


class Rate(NamedTuple):
    """The places of rates between the K learned ones: `share` of the way from lower to upper.

    `lower` and `upper` are the numbers of learned rates (N,), int64; `share` (N, 1) is from 0 to 1.
    """

    lower: Tensor
    upper: Tensor
    share: Tensor

    @classmethod
    def of(cls, rate: Tensor, vectors: int) -> Rate:
        """Return the places of the rates (N,), floats from 0 to `vectors` - 1."""
        lower = rate.floor().clamp(0, max(0, vectors - 2))
        upper = (lower + 1).clamp(max=vectors - 1)
        return cls(lower.long(), upper.long(), (rate - lower)[:, None])


def mixed(rate: Rate, vectors: Tensor) -> Tensor:
    """Interpolate the vectors (K, C) at `rate`: (N, C, 1, 1); exact at a learned rate."""
    below, above = vectors[rate.lower], vectors[rate.upper]
    return (below * (1 - rate.share) + above * rate.share)[:, :, None, None]
