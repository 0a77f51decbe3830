"""Pictures as tensors to `.cca` bytes and back.

Shapes: pictures are (1, 3, H, W), H and W anything from 1 up; h = H/16, w = W/16, rounded up to
whole hyper-latents (64 pixels).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.codec.bitstream import (
    MAX_PIXELS,
    TILE_UNIT,
    Header,
    Stream,
    read_stream,
    write_stream,
)
from pipeline.codec.errors import CodecError, MismatchError

if TYPE_CHECKING:
    from pipeline.codec.model import CCAModel


@torch.no_grad()
def compress(
    model: CCAModel, x: Tensor, header: Header | None = None, side: dict[str, bytes] | None = None
) -> bytes:
    """Return the stream of picture x (1, 3, H, W), floats in [0, 1].

    `header` brings what the stream should say beside size and model; `side` its side data.
    """
    from pipeline.codec.model import check_batch, pad

    height, width = check_batch(x)
    if x.shape[0] != 1:
        raise CodecError(f"a stream holds one picture; {x.shape[0]} were given")
    if width * height > MAX_PIXELS:
        raise CodecError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
    header = replace(
        header or Header(1, 1, ""), width=width, height=height, fingerprint=model.fingerprint[:16]
    )
    device = next(model.parameters()).device
    y = model.analysis(pad(x.to(device, torch.float32), TILE_UNIT))
    tile = model.coder().encode(y, model.hyper_analysis(y))
    return write_stream(header, side or {}, [tile.words], tile.check)


@torch.no_grad()
def decompress(model: CCAModel, data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Return the picture (1, 3, H, W) in [0, 1] of a stream, on the model's device.

    Raises `CodecError` when `data` is no whole stream of this model and `MismatchError` when it
    is, but decodes to other symbols than were encoded.
    """
    stream = read_stream(data, max_pixels)
    check_model(model, stream.header)
    return decode_stream(model, stream)


def check_model(model: CCAModel, header: Header) -> None:
    """Raise `CodecError` unless `model` is the one that `header` names."""
    if model.fingerprint[:16] != header.fingerprint:
        raise CodecError(
            f"the file was made with the model {header.fingerprint}, and this is "
            f"{model.fingerprint[:16]}; give that model"
        )


@torch.no_grad()
def decode_stream(model: CCAModel, stream: Stream) -> Tensor:
    """Return the picture (1, 3, H, W) in [0, 1] of a parsed, whole stream of this model."""
    header = stream.header
    rows, columns = -(-header.height // TILE_UNIT), -(-header.width // TILE_UNIT)
    tile = model.coder().decode(stream.tiles[0], rows, columns)
    if tile.check != stream.symbol_check:
        raise MismatchError(
            "the file decodes to other symbols than were encoded: this machine's arithmetic "
            "differs from the encoder's; nothing was written"
        )
    x_hat: Tensor = model.synthesis(tile.y_hat.float())
    return x_hat[..., : header.height, : header.width].clamp(0, 1)
