"""Linear wavelet shortcuts beside the transforms, for newly trained models.

At each halving of the resolution, a shortcut applies a Haar transform, a scale for each band and a
pointwise mix. One chain of them carries the picture to the latent, another one carries the latent
back. Their outputs are added to the transform's features at each resolution, so that the transform
needs to learn only the non-linear part. After Li et al., "On Disentangled Training for Nonlinear
Transform in Learned Image Compression" (ICLR 2025), where an additional loss keeps the mixes near
orthogonal; here they only start orthogonal.

Shapes: N batch, C and O channels, H and W positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WaveletDown(nn.Module):
    """(N, C, H, W) -> (N, O, H/2, W/2), for even H and W."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4 * inputs, 1, 1))
        self.mix = _orthogonal(4 * inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Split each channel into four bands, scale them and mix."""
        mixed: Tensor = self.mix(_haar(F.pixel_unshuffle(x, 2)) * self.scale)
        return mixed


class WaveletUp(nn.Module):
    """The mirror image: (N, C, H, W) -> (N, O, 2 H, 2 W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mix = _orthogonal(inputs, 4 * outputs)
        self.scale = nn.Parameter(torch.ones(1, 4 * outputs, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Mix, scale the bands, and join each four of them into a channel."""
        return F.pixel_shuffle(_haar(self.mix(x) * self.scale), 2)


def close(path: nn.ModuleList) -> None:
    """Make a path of shortcuts output zeros until training changes it."""
    for step in path:
        nn.init.zeros_(step.get_submodule("mix").get_parameter("weight"))


def _orthogonal(inputs: int, outputs: int) -> nn.Conv2d:
    mix = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.orthogonal_(mix.weight.view(outputs, inputs))
    return mix


def _haar(x: Tensor) -> Tensor:
    """Return sums and differences of every four channels (N, 4 C, H, W); it is its own inverse."""
    a, b, c, d = (x[:, position::4] for position in range(4))
    together, apart, left, right = a + b, a - b, c + d, c - d
    bands = (together + left, apart + right, together - left, apart - right)
    return torch.stack(bands, 2).flatten(1, 2) / 2
