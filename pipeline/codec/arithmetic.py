"""Checks whether torch adds up whole numbers below 2^24 exactly in float32 on a device.

Where a check fails, layers compute in float64, which gives the same bits more slowly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codec.exact_layers import local
from pipeline.codec.scales import BLOCK, LARGEST_SUM, Scale, whole_weights


@contextmanager
def in_float64() -> Iterator[None]:
    """Make this thread add up whole numbers in float64 inside the block: the same bits, slower."""
    before = getattr(local, "double", False)
    local.double = True
    try:
        yield
    finally:
        local.double = before


def in_float32(x: Tensor) -> bool:
    """Tell whether float32 sums are exact on x's device, with torch's current settings."""
    if getattr(local, "double", False) or torch.is_autocast_enabled(x.device.type):
        return False
    try:
        precise = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch's older and newer settings were mixed
        return False
    return precise and _adds_up(x.device)


@cache
def direct_convolutions() -> bool:
    """Tell whether this torch's depthwise convolutions on the CPU are sums of plain products.

    torch asks oneDNN for its direct algorithm, whose order of summation does not matter. An
    algorithm that transforms its inputs (Winograd) would round, and fail this comparison.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    rng, scale = np.random.default_rng(0), Scale(0, 13)
    weights, _ = whole_weights(rng.standard_normal((32, 9)), [slice(None)], scale)
    signs = np.sign(weights).reshape(1, 32, 3, 3)
    inputs = np.tile(signs * scale.largest, (1, 1, 4, 6))
    x, taps = torch.from_numpy(inputs), torch.from_numpy(weights).view(32, 1, 3, 3)
    expected = F.conv2d(x, taps, groups=32, padding=1)
    x = x.float().contiguous(memory_format=torch.channels_last)
    return torch.equal(F.conv2d(x, taps.float(), groups=32, padding=1).double(), expected)


@cache
def _adds_up(device: torch.device) -> bool:
    """Tell whether matrix products of the largest whole numbers are exact on this device."""
    rng = np.random.default_rng(0)
    scale = Scale(0, 11)
    weights, _ = whole_weights(rng.standard_normal((64, BLOCK)), [slice(None)], scale)
    inputs = np.where(rng.random((BLOCK, 64)) < 0.5, -1.0, 1.0) * scale.largest
    inputs[:, :32] = np.sign(weights[:32].T) * scale.largest
    expected = torch.from_numpy(weights @ inputs)
    left, right = (torch.from_numpy(part).float().to(device) for part in (weights, inputs))
    assert expected.abs().max() <= LARGEST_SUM
    return torch.equal((left @ right).cpu().double(), expected)
