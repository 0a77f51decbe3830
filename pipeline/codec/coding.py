"""Compresses pictures to `.cca` bytes and back, in one piece or in tiles of bounded memory.

Latents are coded tile by tile, and the entropy model sees one tile at a time. The transforms see
more: the analysis sees a margin of pixels around the tile, the synthesis a margin of latents. Both
margins are wide enough for all convolutions, so that a tile's border does not affect them. Only the
means inside the NAF blocks, over all positions, still differ from tile to tile. Neighbouring tiles
are therefore blended over a band on both sides of their border.

Shapes: pictures are (1, 3, H, W), H and W anything from 1 up; M latent channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codec.bitstream import (
    MAX_PIXELS,
    Header,
    Stream,
    read_stream,
    write_stream,
)
from pipeline.codec.errors import MISMATCH, CodecError, MismatchError
from pipeline.codec.interface import Codec
from pipeline.codec.matching import check_model as check_model
from pipeline.codec.memory import MAX_MEMORY, memory_of
from pipeline.codec.memory import tile_size as tile_size
from pipeline.codec.tiles import Sink, TileRows, TilesDone, paint


class PictureSource(Protocol):
    """A picture whose regions can be read as floats in [0, 1]."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        ...

    def region(self, rows: slice, columns: slice) -> Tensor:
        """Return (1, 3, rows, columns)."""
        ...


class TensorSource:
    """A picture in memory: a tensor (1, 3, H, W)."""

    def __init__(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape) < 1 or not x.is_floating_point():
            raise CodecError(
                f"expected a picture as floats (1, 3, H, W), not {tuple(x.shape)} of {x.dtype}"
            )
        if x.shape[0] != 1:
            raise CodecError(f"a stream holds one picture; {x.shape[0]} were given")
        self.x = x

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.x.shape[2], self.x.shape[3]

    def region(self, rows: slice, columns: slice) -> Tensor:
        """Return a part of the picture."""
        return self.x[:, :, rows, columns]


@torch.no_grad()
def compress(
    model: Codec,
    source: PictureSource,
    header: Header | None = None,
    side: dict[str, bytes] | None = None,
    max_memory: int = MAX_MEMORY,
    rate: float | None = None,
    progress: TilesDone | None = None,
) -> bytes:
    """Return the stream of the picture `source`.

    `header` supplies the other fields of the stream's header; size, tiles, model and rate are set
    here. `side` is its side data. Raises `CodecError` when the picture is too large, `max_memory`
    (bytes) is too small, or the model does not have `rate`.
    """
    height, width = source.size
    if width * height > MAX_PIXELS:
        raise CodecError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
    header = replace(
        header or Header(1, 1, ""),
        width=width,
        height=height,
        fingerprint=model.fingerprint[:16],
        tile=tile_size(model.config, height, width, max_memory),
        rate=model.config.check_rate(rate),
    )
    check, tiles = 0, []
    boxes = header.tiles()
    for done, box in enumerate(boxes, 1):
        y = _analyse(model, source, box, header.rate)
        tile = model.coder().encode(y, check, header.rate)
        check = tile.check
        tiles.append(tile.words)
        if progress is not None:
            progress(done, len(boxes))
    return write_stream(header, side or {}, tiles, check)


@torch.no_grad()
def decompress(
    model: Codec, data: bytes, max_pixels: int = MAX_PIXELS, max_memory: int = MAX_MEMORY
) -> Tensor:
    """Return the picture (1, 3, H, W) in [0, 1] of a stream, on the CPU.

    Raises `CodecError` when `data` is not a whole stream of this model, and `MismatchError` when
    it decodes to other symbols than were encoded.
    """
    stream = read_stream(data, max_pixels)
    check_model(model, stream.header)
    blocks: list[Tensor] = []
    decode_stream(model, stream, lambda _, block: blocks.append(block), max_memory)
    return torch.cat(blocks, dim=1)[None]


@torch.no_grad()
def decode_stream(
    model: Codec,
    stream: Stream,
    sink: Sink,
    max_memory: int = MAX_MEMORY,
    progress: TilesDone | None = None,
) -> None:
    """Pass the picture of a parsed stream of this model to `sink`, from top to bottom.

    Latents that a cut stream lacks take their predicted means. If a whole stream decodes to other
    symbols than were encoded, `MismatchError` is raised at the end: discard what `sink` got.
    """
    header = stream.header
    height, width = header.tiles()[0][2:]
    around = 2 * model.config.margin if header.tile else 0
    needed = memory_of(model.config, height + around, width + around)
    if needed > max_memory:
        raise CodecError(
            f"decoding takes about {needed >> 20} MiB for the tiles that the file was made with, "
            f"more than the limit of {max_memory >> 20} MiB; raise --max-memory"
        )
    rows = TileRows(model, stream, progress)
    paint(model, header, rows, sink)
    if stream.complete and rows.check != stream.symbol_check:
        raise MismatchError(MISMATCH)


def _analyse(
    model: Codec, source: PictureSource, box: tuple[int, int, int, int], rate: float | None
) -> Tensor:
    """Return the latent (1, M, h, w) of one tile, rounded up to whole units of pixels."""
    (top, left, height, width), config = box, model.config
    margin, stride = config.margin, config.latent_stride
    start = max(0, top - margin), max(0, left - margin)
    x = source.region(
        slice(start[0], top + height + margin), slice(start[1], left + width + margin)
    )
    device = next(model.parameters()).device
    y = model.analyse(pad(x.to(device, torch.float32), config.unit), rate)
    row, column = (top - start[0]) // stride, (left - start[1]) // stride
    rows, columns = (-(-side // config.unit) * config.unit // stride for side in (height, width))
    part: Tensor = y[:, :, row : row + rows, column : column + columns]
    return part.contiguous(memory_format=torch.channels_last)


def pad(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until H and W are multiples of `multiple`."""
    bottom, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    if bottom or right:
        x = F.pad(x, (0, right, 0, bottom), mode="replicate")
    return x.contiguous(memory_format=torch.channels_last)
