"""MS-SSIM as a loss: as pytorch_msssim computes it, but without waiting for the GPU.

Its own backward pass asks the device whether a product has zeros, which no CUDA graph can. And
where a picture's structure is reversed, its gradient is not a number; here there is none.

Source: Wang, Simoncelli and Bovik, "Multi-scale structural similarity for image quality
assessment", 2003; the constants are theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
# Lower similarities count as this one.
_LOWEST = 1e-6


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the MS-SSIM of each sample, (N,), of pictures (N, 3, H, W) in [0, 1].

    The sides are 161 at least (not checked). Channels are compared apart, then averaged.
    """
    window = _window(x)
    logs = torch.zeros(x.shape[:2], device=x.device)
    for scale, weight in enumerate(_WEIGHTS):
        if scale:
            odd = [side % 2 for side in x.shape[2:]]
            x, y = (F.avg_pool2d(one, 2, padding=odd) for one in (x, y))
        whole, structure = _similarities(x, y, window)
        found = whole if scale == len(_WEIGHTS) - 1 else structure
        logs = logs + weight * found.clamp(min=_LOWEST).log()
    return logs.exp().mean(1)


def _similarities(x: Tensor, y: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Return the SSIM and its factor for contrast and structure, (N, 3) each, at one scale."""
    together = torch.cat([x, y, x * x, y * y, x * y])
    for kernel in (window, window.transpose(2, 3)):
        together = F.conv2d(together, kernel, groups=3)
    mean_x, mean_y, xx, yy, xy = together.chunk(5)
    spread = (xx - mean_x.square()) + (yy - mean_y.square())
    structure = (2 * (xy - mean_x * mean_y) + _C2) / (spread + _C2)
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (luminance * structure).mean((2, 3)), structure.mean((2, 3))


def _window(x: Tensor) -> Tensor:
    """Return the Gaussian window as a column for each channel, (3, 1, 11, 1)."""
    distances = torch.arange(_WINDOW, device=x.device, dtype=torch.float32) - _WINDOW // 2
    heights = torch.exp(-distances.square() / (2 * _SIGMA**2))
    return (heights / heights.sum()).view(1, 1, _WINDOW, 1).repeat(3, 1, 1, 1)
