"""Distortion between two 8-bit RGB pictures, as a viewer gets them."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluation.errors import EvaluationError

# An RGB picture: (H, W, 3), uint8.
Picture = NDArray[np.uint8]

# Identical pictures have no finite PSNR; a mean over a set needs one.
HIGHEST_DB = 100.0
# Five scales of an 11-pixel window: below this side MS-SSIM is not defined.
MS_SSIM_SIDE = 161


def psnr(a: Picture, b: Picture) -> float:
    """Return the peak signal-to-noise ratio in dB over all samples of R, G and B.

    `a` and `b` are (H, W, 3) uint8. At most 100 dB, also for identical pictures.
    """
    _check(a, b)
    error = a.astype(np.int32) - b.astype(np.int32)
    mse = float(np.mean(np.square(error), dtype=np.float64))
    return HIGHEST_DB if mse == 0 else min(HIGHEST_DB, 10 * math.log10(255**2 / mse))


def ms_ssim(a: Picture, b: Picture) -> float | None:
    """Return the multi-scale structural similarity in [0, 1], the mean over R, G and B.

    `a` and `b` are (H, W, 3) uint8. None if a side is below 161 pixels: five scales don't fit.
    Source: Wang, Simoncelli, Bovik, "Multiscale structural similarity", Asilomar 2003.
    """
    from pytorch_msssim import ms_ssim as reference

    _check(a, b)
    if min(a.shape[:2]) < MS_SSIM_SIDE:
        return None
    with torch.inference_mode():
        value = reference(_tensor(a), _tensor(b), data_range=255.0)
    return float(value)


def decibels(similarity: float) -> float:
    """Return an MS-SSIM as -10 log10(1 - MS-SSIM), at most 100 dB."""
    return HIGHEST_DB if similarity >= 1 else min(HIGHEST_DB, -10 * math.log10(1 - similarity))


def _tensor(picture: Picture) -> torch.Tensor:
    channels = np.ascontiguousarray(picture.transpose(2, 0, 1))
    return torch.from_numpy(channels).to(torch.float32).unsqueeze(0)


def _check(a: Picture, b: Picture) -> None:
    for picture in (a, b):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise EvaluationError(
                f"metrics take (H, W, 3) uint8 pictures, not {picture.shape} {picture.dtype}"
            )
    if a.shape != b.shape:
        raise EvaluationError(f"pictures of two sizes: {a.shape} against {b.shape}")
