"""Rounds the inputs of exact layers to whole numbers, in memory that each thread reuses.

Shapes: N batch, C channels, H x W positions; pictures are in channels-last memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codec.exact_layers import local

# The most bytes of scratch memory that a thread keeps for each name.
_KEPT = 2**26
# The most views of that memory that a thread keeps.
_VIEWS = 1024
# Columns and rows added around a picture: left, right, above and below.
Padding = tuple[int, int, int, int]
NO_PADDING: Padding = (0, 0, 0, 0)
# 2^exponent of a scale: a number, or one for each picture of a batch (N, 1, 1, 1).
Unit = float | Tensor


def whole_picture(
    x: Tensor, unit: Unit, largest: int, padding: Padding = NO_PADDING, mode: str = "zeros"
) -> Tensor:
    """Return (N, C, H, W) as whole numbers (N, H', W', C), padded; see `whole_inputs`."""
    if mode != "zeros" and any(padding):
        x, padding = F.pad(x, padding, mode), NO_PADDING
    return whole_inputs(x.permute(0, 2, 3, 1), unit, largest, padding)


def whole_inputs(x: Tensor, unit: Unit, largest: int, padding: Padding = NO_PADDING) -> Tensor:
    """Return x times `unit`, rounded and clamped to +-`largest`; float32.

    `padding` adds zeros around H and W of (N, H, W, C). The next call in this thread may overwrite
    the result.
    """
    x = x.float()
    out, inside, *borders = _views("inputs", _around(x.shape, padding), padding, x)
    for border in borders:
        border.zero_()
    torch.mul(x, unit, out=inside)
    return out.round_().clamp_(-largest, largest)


def scratch(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return uninitialised float32 numbers of `shape`, on the device of `like`.

    On the CPU, each thread has its own memory for a name and reuses it for every call: new pages
    cost a process as much as writing to them.
    """
    return _views(name, shape, NO_PADDING, like)[0]


def _views(name: str, shape: tuple[int, ...], padding: Padding, like: Tensor) -> list[Tensor]:
    """Return the tensor of `scratch`, its part inside the padding, and the parts of the padding.

    A thread keeps the views, too: making them takes longer than a small product.
    """
    count = math.prod(shape)
    if not like.is_cpu or 4 * count > _KEPT:
        return _padded(like.new_empty(shape, dtype=torch.float32), padding)
    views: dict[Any, list[Tensor]] = local.__dict__.setdefault("views", {})
    key = name, shape, padding
    if key not in views:
        # Tensors that are made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            memory = _memory(name, count, views)
            views[key] = _padded(memory[:count].view(shape), padding)
    return views[key]


def _memory(name: str, count: int, views: dict[Any, list[Tensor]]) -> Tensor:
    """Return this thread's memory for a name, of at least `count` numbers.

    Clears `views` when memory is replaced, and when there are too many views.
    """
    kept: dict[str, Tensor] = local.__dict__.setdefault("scratch", {})
    small = name not in kept or kept[name].numel() < count
    if small or len(views) >= _VIEWS:
        views.clear()
    if small:
        kept[name] = torch.empty(count)
    return kept[name]


def _around(shape: tuple[int, ...], padding: Padding) -> tuple[int, ...]:
    """Return the shape of (N, H, W, C) with padding; without padding, any `shape` as it is."""
    if padding == NO_PADDING:
        return shape
    (n, h, w, c), (left, right, above, below) = shape, padding
    return n, h + above + below, w + left + right, c


def _padded(out: Tensor, padding: Padding) -> list[Tensor]:
    """Return `out`, its part inside the padding, and the parts of the padding."""
    if padding == NO_PADDING:
        return [out, out]
    (left, right, above, below), (_, h, w, _) = padding, out.shape
    inside = out[:, above : h - below, left : w - right]
    around = [out[:, :above], out[:, h - below :], out[:, :, :left], out[:, :, w - right :]]
    return [out, inside, *around]
