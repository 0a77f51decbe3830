"""Resizing of 8-bit samples as Pillow defines it: in whole numbers, the same on every device.

Each sample of the result is a weighted mean of samples of the source. The weights are those of
Pillow (`Resample.c`): a filter, stretched by the factor of a shrinkage, times 2^22 and rounded.
Sums are whole numbers of 32 bits, so neither the order of additions nor the device matters. Rows
are done first, and rounded to 8 bits, then columns.

A crop of a resized picture is made from the samples that it needs. Legend: N pictures, H height, W
width, K weights of a sample.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
BITS = 22  # of a weight behind the point
PADDED = 64  # sizes are rounded up to multiples of it, to put pictures together


def _triangle(x: Floats) -> Floats:
    return np.where(np.abs(x) < 1, 1 - np.abs(x), 0.0)


def _box(x: Floats) -> Floats:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _cubic(x: Floats) -> Floats:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: Floats) -> Floats:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0)


# Name -> (Pillow's name, how far it reaches, weight at a distance).
FILTERS: dict[str, tuple[Image.Resampling, float, Any]] = {
    "bilinear": (Image.Resampling.BILINEAR, 1.0, _triangle),
    "bicubic": (Image.Resampling.BICUBIC, 2.0, _cubic),
    "lanczos": (Image.Resampling.LANCZOS, 3.0, _lanczos),
    "area": (Image.Resampling.BOX, 0.5, _box),
}


@dataclass(frozen=True)
class Axis:
    """One axis of a region of a resized picture: `length` samples of the result.

    `first` and `end` bound the samples of the source that are needed; `low` and `high` bound the
    region in the source, in samples from `first` on (numbers of 32 bits, as Pillow takes them).
    """

    first: int
    end: int
    low: float
    high: float
    length: int

    @classmethod
    def of(cls, before: int, after: int, start: int, length: int, reach: float) -> Axis:
        """Return the axis for a filter that reaches `reach` samples."""
        scale = before / after
        low, high = start * scale, min((start + length) * scale, before)
        wide = reach * max(scale, 1.0)
        first = max(math.floor(low - wide) - 1, 0)
        end = min(math.ceil(high + wide) + 1, before)
        low, high = (min(float(np.float32(at - first)), end - first) for at in (low, high))
        return cls(first, end, low, high, length)

    def weights(self, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Return the place and the weight of each sample's sources: two of (length, K)."""
        _, reach, function = FILTERS[name]
        scale = float(np.float32(self.high) - np.float32(self.low)) / self.length
        stretch = max(scale, 1.0)
        size = self.end - self.first
        centre = self.low + (np.arange(self.length) + 0.5) * scale
        least = np.maximum((centre - reach * stretch + 0.5).astype(np.int64), 0)
        most = np.minimum((centre + reach * stretch + 0.5).astype(np.int64), size)
        places = least[:, None] + np.arange(int((most - least).max()))
        values = function((places - centre[:, None] + 0.5) * (1.0 / stretch))
        values = np.where(places < most[:, None], values, 0.0)
        values /= values.sum(axis=1, keepdims=True)
        rounded = np.trunc(values * (1 << BITS) + np.where(values < 0, -0.5, 0.5))
        return np.minimum(places, size - 1), rounded.astype(np.int32)


@dataclass(frozen=True)
class Scaling:
    """A resize that is due: of a picture (H, W) to `after`, and the region of it that is wanted.

    `region` is top, left, height and width in pixels of the result.
    """

    before: tuple[int, int]
    after: tuple[int, int]
    filter: str
    region: tuple[int, int, int, int]

    @classmethod
    def whole(cls, before: tuple[int, int], after: tuple[int, int], name: str) -> Scaling:
        """Return the resize of a whole picture."""
        return cls(before, after, name, (0, 0, *after))

    def cut(self, top: int, left: int, side: int) -> Scaling:
        """Return the resize of which only a square of the region is wanted."""
        region = (self.region[0] + top, self.region[1] + left, side, side)
        return Scaling(self.before, self.after, self.filter, region)

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """The vertical and the horizontal axis."""
        reach = FILTERS[self.filter][1]
        top, left, height, width = self.region
        return (
            Axis.of(self.before[0], self.after[0], top, height, reach),
            Axis.of(self.before[1], self.after[1], left, width, reach),
        )


def resized(pixels: Pixels, scaling: Scaling) -> Pixels:
    """Return the region of `pixels` (H, W, 3) that `scaling` asks for, by Pillow."""
    rows, columns = scaling.axes
    by, wide, tall = FILTERS[scaling.filter][0], columns.length, rows.length
    needed = Image.fromarray(pixels[rows.first : rows.end, columns.first : columns.end])
    # In one call, Pillow would choose which axis comes first: some of its versions do it otherwise.
    across = (columns.low, 0, columns.high, needed.height)
    narrow = needed.resize((wide, needed.height), by, box=across)
    return np.asarray(narrow.resize((wide, tall), by, box=(0, rows.low, wide, rows.high)))


def resized_together(pixels: Sequence[Tensor], scalings: Sequence[Scaling]) -> list[Tensor]:
    """Return, for uint8 tensors (1, 3, H, W), what `resized` gives, in few calls.

    Pictures of about the same sizes are put together, filled up at their right and lower edges.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for number, one in enumerate(scalings):
        needed = ((axis.end - axis.first, axis.length) for axis in one.axes)
        groups[one.filter, *(-(-side // PADDED) for pair in needed for side in pair)].append(number)
    done: dict[int, Tensor] = {}
    for group in groups.values():
        axes = [scalings[number].axes for number in group]
        taken = [
            pixels[number][0, :, rows.first : rows.end, columns.first : columns.end]
            for number, (rows, columns) in zip(group, axes, strict=True)
        ]
        name = scalings[group[0]].filter
        wide = _along_rows(_filled(taken), [columns for _, columns in axes], name)
        tall = _along_rows(wide.transpose(-1, -2), [rows for rows, _ in axes], name)
        for at, (number, (rows, columns)) in enumerate(zip(group, axes, strict=True)):
            done[number] = tall[at : at + 1, :, : columns.length, : rows.length].transpose(-1, -2)
    return [done[number].contiguous() for number in range(len(pixels))]


def _filled(pictures: Sequence[Tensor]) -> Tensor:
    """Return the pictures (3, h, w) as one (N, 3, H, W)."""
    height, width = (max(one.shape[axis] for one in pictures) for axis in (1, 2))
    filled = pictures[0].new_zeros((len(pictures), 3, height, width))
    for one, place in zip(pictures, filled, strict=True):
        place[:, : one.shape[1], : one.shape[2]] = one
    return filled


def _along_rows(pixels: Tensor, axes: Sequence[Axis], name: str) -> Tensor:
    """Return `pixels`, uint8 (N, 3, H, W), resized along the last axis, each by its own."""
    import torch

    tables = [one.weights(name) for one in axes]
    length = max(one.length for one in axes)
    count = max(places.shape[1] for places, _ in tables)
    shape = (len(tables), length, count)
    places, weights = np.zeros(shape, np.int64), np.zeros(shape, np.int32)
    for number, (place, weight) in enumerate(tables):
        places[number, : place.shape[0], : place.shape[1]] = place
        weights[number, : weight.shape[0], : weight.shape[1]] = weight
    at = torch.from_numpy(places).to(pixels.device)[:, None, None]
    by = torch.from_numpy(weights).to(pixels.device)[:, None, None]
    height = pixels.shape[2]
    total = torch.full(
        (len(tables), 3, height, length), 1 << (BITS - 1), dtype=torch.int32, device=pixels.device
    )
    for k in range(count):
        index = at[..., k].expand(len(tables), 3, height, length)
        total += pixels.gather(3, index).int() * by[..., k]
    return (total >> BITS).clamp_(0, 255).to(torch.uint8)
