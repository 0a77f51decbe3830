"""Picture files to `.cca` files and back, each written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.codec.bitstream import MAX_PIXELS, read_header, read_stream
from pipeline.codec.coding import check_model, compress, decode_stream
from pipeline.codec.errors import CodecError
from pipeline.codec.picture import Picture, to_image, write_image
from pipeline.codec.storage import stored_fingerprint

if TYPE_CHECKING:
    from pipeline.codec.model import CCAModel


class Compressed(TypedDict):
    """What compressing a picture came to."""

    bytes: int
    bpp: float
    width: int
    height: int


def compress_file(
    model: CCAModel, picture: Picture, target: Path, verify: bool = False
) -> Compressed:
    """Write `picture` to the .cca file `target`; with `verify`, only if it decodes again.

    Raises `MismatchError` when verification fails; nothing is then written.
    """
    data = compress(model, picture.x, picture.header(), picture.side())
    if verify:
        decode_stream(model, read_stream(data))
    _write(data, target)
    height, width = picture.x.shape[2:]
    return Compressed(
        bytes=len(data), bpp=8 * len(data) / (width * height), width=width, height=height
    )


def decompress_file(
    model: CCAModel, data: bytes, target: Path, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Write the picture of the stream `data` to `target`; return its width and height.

    Raises `CodecError` and `MismatchError` as `CCAModel.decompress` does.
    """
    stream = read_stream(data, max_pixels)
    check_model(model, stream.header)
    x_hat = decode_stream(model, stream)
    write_image(to_image(x_hat, stream.header, stream.side), target)
    return stream.header.width, stream.header.height


def read_file(path: Path) -> bytes:
    """Return the bytes of a .cca file; a missing one raises `CodecError`."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CodecError(f"there is no file {path}") from error


def find_model(data: bytes, folders: Sequence[Path]) -> Path:
    """Return the model file in `folders` that made the stream `data`, by its fingerprint."""
    wanted = read_header(data).fingerprint
    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            if stored_fingerprint(file).startswith(wanted):
                return file
    raise CodecError(
        f"no model with the fingerprint {wanted} lies beside the file or in the working folder; "
        "name it with --model"
    )


def _write(data: bytes, target: Path) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
