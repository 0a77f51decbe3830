"""Decodes tile by tile: turns rows of latents into blocks of blended pixels.

Shapes: M latent channels; h and w the positions of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from pipeline.codec.bitstream import Header, Stream
from pipeline.codec.config import BLEND
from pipeline.codec.errors import MISMATCH, CodecError, MismatchError
from pipeline.codec.interface import Codec
from pipeline.codec.symbols import Words

# Takes the first row of a block and the block, (3, rows, W) in [0, 1].
Sink = Callable[[int, Tensor], None]
# Called with the number of tiles that are done and the number of all tiles.
TilesDone = Callable[[int, int], None]


@dataclass(frozen=True)
class _Row:
    """A row of tiles: its place in pixels and its latent (1, M, h, all columns)."""

    top: int
    height: int
    y_hat: Tensor


class TileRows:
    """Decodes tiles in order; `check` is the running CRC-32 of the symbols decoded so far."""

    def __init__(self, model: Codec, stream: Stream, progress: TilesDone | None = None) -> None:
        self.model, self.stream, self.progress = model, stream, progress
        self.check = 0

    def __iter__(self) -> Iterator[_Row]:
        tiles = self.stream.header.tiles()
        row: list[Tensor] = []
        for number, (top, _, height, width) in enumerate(tiles):
            row.append(self._decode(number, height, width))
            if self.progress is not None:
                self.progress(number + 1, len(tiles))
            if number + 1 == len(tiles) or tiles[number + 1][0] != top:
                yield _Row(top, height, torch.cat(row, dim=3))
                row = []

    def _decode(self, number: int, height: int, width: int) -> Tensor:
        arrived = self.stream.tiles
        words: Words = arrived[number] if number < len(arrived) else np.empty(0, np.uint32)
        cut = number >= len(arrived) or (self.stream.cut_tile and number + 1 == len(arrived))
        unit, rate = self.model.config.unit, self.stream.header.rate
        size = -(-height // unit), -(-width // unit)
        try:
            tile = self.model.coder().decode(words, *size, self.check, partial=cut, rate=rate)
        except CodecError as error:
            # The checksums of a whole file match, so its words are not damaged.
            if self.stream.complete:
                raise MismatchError(MISMATCH) from error
            raise
        self.check = tile.check
        return tile.y_hat


def paint(model: Codec, header: Header, rows: TileRows, sink: Sink) -> None:
    """Turn rows of latents into blocks of pixels, each row once the next one is decoded."""
    margin = model.config.margin // model.config.latent_stride
    carry = torch.zeros(3, 0, header.width)
    above: Tensor | None = None
    waiting: _Row | None = None
    for row in chain(rows, [None]):
        if waiting is not None:
            below = None if row is None else row.y_hat[:, :, :margin]
            carry = _paint_row(model, header, waiting, (above, below), carry, sink)
            above = waiting.y_hat[:, :, -margin:]
        waiting = row


def _paint_row(
    model: Codec,
    header: Header,
    row: _Row,
    around: tuple[Tensor | None, Tensor | None],
    carry: Tensor,
    sink: Sink,
) -> Tensor:
    """Pass the complete pixels to `sink`; return the band that the next row adds to."""
    above, below = around
    y_hat = torch.cat([part for part in (above, row.y_hat, below) if part is not None], dim=2)
    bottom = row.top + row.height
    start = row.top - (0 if above is None else BLEND)
    end = min(header.height, bottom + (0 if below is None else BLEND))
    # The picture's row at which y_hat begins, which may lie above the strip.
    origin = row.top - (0 if above is None else above.shape[2] * model.config.latent_stride)
    strip = torch.zeros(3, end - start, header.width)
    strip[:, : carry.shape[1]] += carry
    down = _ramp(start, end, None if above is None else row.top, None if below is None else bottom)
    for left, right in _columns(header):
        pixels, first = _synthesise(model, y_hat, left, right, header.rate)
        x0, x1 = max(0, left - BLEND) if left else 0, min(header.width, right + BLEND)
        across = _ramp(x0, x1, left or None, right if right < header.width else None)
        part = pixels[:, start - origin : end - origin, x0 - first : x1 - first]
        strip[:, :, x0:x1] += part * down.view(-1, 1) * across
    complete = len(down) if below is None else bottom - BLEND - start
    sink(start, strip[:, :complete])
    return strip[:, complete:]


def _columns(header: Header) -> list[tuple[int, int]]:
    side = header.tile or header.width
    return [(left, min(left + side, header.width)) for left in range(0, header.width, side)]


def _synthesise(
    model: Codec, y_hat: Tensor, left: int, right: int, rate: float | None
) -> tuple[Tensor, int]:
    """Return the pixels of columns `left` to `right` with a margin, and their first column."""
    stride, margin = model.config.latent_stride, model.config.margin
    first = max(0, (left - margin) // stride)
    last = -(-(right + margin) // stride)
    part = y_hat[:, :, :, first:last].contiguous(memory_format=torch.channels_last)
    return model.synthesise(part, rate)[0].float().clamp(0, 1).cpu(), first * stride


def _ramp(start: int, end: int, lower: int | None, upper: int | None) -> Tensor:
    """Return blending weights of a tile at pixels start..end; with the neighbours', they sum to 1.

    `lower` and `upper` are its borders with neighbours, None on a side without a neighbour.
    """
    places = torch.arange(start, end) + 0.5
    weights = torch.ones(end - start)
    if lower is not None:
        weights *= ((places - lower) / (2 * BLEND) + 0.5).clamp(0, 1)
    if upper is not None:
        weights *= ((upper - places) / (2 * BLEND) + 0.5).clamp(0, 1)
    return weights
