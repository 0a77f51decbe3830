"""Measures of a picture, worked out in whole numbers: the same on every device.

They look at the green channel, which carries most of the luminance.
"""

from __future__ import annotations

from typing import Any

BLOCK = 8  # side of the blocks that a JPEG codes, in pixels


def detail(green: Any) -> float:
    """Return the mean absolute difference of neighbours, in levels of 255: 0 is flat.

    Args:
        green: whole numbers (H, W), an array or a tensor of a signed type.
    """
    height, width = green.shape
    across = abs(green[:, 1:] - green[:, :-1]).sum().item() / max(height * (width - 1), 1)
    down = abs(green[1:] - green[:-1]).sum().item() / max((height - 1) * width, 1)
    return float((across + down) / 2)


def blocking(green: Any) -> float:
    """Return how much stronger edges are on a grid of 8 pixels than elsewhere: about 1 is none.

    The strength of an edge between two pixels is the absolute third difference about it, which
    slopes do not raise. Of the 8 places that a grid can have, the strongest is compared with the
    mean of the others; rows and columns are averaged. (After Wang, Sheikh and Bovik, "No-reference
    perceptual quality assessment of JPEG compressed images", 2002.)

    Args:
        green: whole numbers (H, W), an array or a tensor of a signed type.
    """
    return (_grid(green) + _grid(green.T)) / 2


def _grid(green: Any) -> float:
    edges = abs(green[:, :-3] - 3 * green[:, 1:-2] + 3 * green[:, 2:-1] - green[:, 3:]).sum(0)
    columns = len(edges) // BLOCK * BLOCK
    if columns < 2 * BLOCK:
        return 1.0
    places = sorted(int(edges[at:columns:BLOCK].sum().item()) for at in range(BLOCK))
    others = sum(places[:-1]) / (BLOCK - 1)
    return places[-1] / others if others else 1.0
