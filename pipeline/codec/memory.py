"""The memory that a model's networks take for a picture, and the size of tiles that follows."""

from __future__ import annotations

import math

from pipeline.codec.bitstream import TILE_UNIT
from pipeline.codec.config import Config
from pipeline.codec.errors import CodecError

# The default limit of memory for the networks' activations, in bytes.
MAX_MEMORY = 4 * 2**30


def tile_size(config: Config, height: int, width: int, max_memory: int) -> int:
    """Return the side of the largest tiles that need no more than `max_memory`; 0 for one tile.

    Raises `CodecError` when even the smallest tiles need more.
    """
    if memory_of(config, height, width) <= max_memory:
        return 0
    # A tile has whole units of the file's format and of the model. Decoding keeps only one row of
    # tiles on either side, so a tile is no smaller than the margin.
    unit = math.lcm(TILE_UNIT, config.unit)
    least = max(4 * unit, -(-config.margin // unit) * unit)
    side = math.isqrt(max_memory // config.bytes_per_pixel) - 2 * config.margin
    tile = side // unit * unit
    if tile < least:
        padded = least + 2 * config.margin
        raise CodecError(
            f"{max_memory >> 20} MiB are too little for this model: it takes at least "
            f"{-(-memory_of(config, padded, padded) >> 20)} MiB"
        )
    return tile


def memory_of(config: Config, height: int, width: int) -> int:
    """Return a bound on the memory for activations of height x width pixels, in bytes."""
    return height * width * config.bytes_per_pixel
