"""Compresses and decodes pictures with a model in either form: with torch, or without it.

A model without torch takes pictures of a single tile; for any other picture its form with torch is
loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.codec.light import LightModel
from pipeline.codec.memory import MAX_MEMORY, tile_size

if TYPE_CHECKING:
    from pipeline.codec.bitstream import Header, Stream
    from pipeline.codec.model import Model
    from pipeline.codec.picture import Picture
    from pipeline.codec.tiles import TilesDone

    AnyModel: TypeAlias = Model | LightModel


def compress(
    model: AnyModel,
    picture: Picture,
    header: Header,
    side: dict[str, bytes],
    max_memory: int = MAX_MEMORY,
    rate: float | None = None,
    progress: TilesDone | None = None,
) -> bytes:
    """Return the stream of `picture`; see `pipeline.codec.coding.compress`."""
    if isinstance(model, LightModel):
        if model.takes(*picture.size) and not tile_size(model.config, *picture.size, max_memory):
            data = model.compress(picture.array(), header, side, rate)
            if progress is not None:
                progress(1, 1)
            return data
        model = model.with_torch()
    from pipeline.codec import coding

    return coding.compress(model, picture, header, side, max_memory, rate, progress)


def decode_stream(
    model: AnyModel,
    stream: Stream,
    sink: Callable[[int, Any], None],
    max_memory: int = MAX_MEMORY,
    progress: TilesDone | None = None,
) -> None:
    """Pass the picture of `stream` to `sink`, as tensors or arrays.

    See `pipeline.codec.coding.decode_stream`.
    """
    header = stream.header
    if isinstance(model, LightModel):
        whole = stream.complete and not header.tile and model.takes(header.height, header.width)
        if whole and not tile_size(model.config, header.height, header.width, max_memory):
            sink(0, model.decompress(stream).transpose(2, 0, 1))
            if progress is not None:
                progress(1, 1)
            return
        model = model.with_torch()
    from pipeline.codec import coding

    coding.decode_stream(model, stream, sink, max_memory, progress)
