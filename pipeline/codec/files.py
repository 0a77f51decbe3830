"""Picture files to `.cca` files and back, each written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.codec import box
from pipeline.codec.bitstream import MAX_PIXELS, read_header, read_stream
from pipeline.codec.coding import MAX_MEMORY, check_model, compress, decode_stream
from pipeline.codec.errors import CodecError
from pipeline.codec.picture import Canvas, Picture, picture_format, write_image
from pipeline.codec.storage import stored_fingerprint
from pipeline.codec.tiles import TilesDone
from pipeline.common.atomic import write_bytes

if TYPE_CHECKING:
    from pipeline.codec.model import Model


class Compressed(TypedDict):
    """What compressing a picture came to."""

    bytes: int
    bpp: float
    width: int
    height: int


class Decompressed(TypedDict):
    """What decompressing came to; `complete` is False for a preview of a cut file."""

    width: int
    height: int
    complete: bool


def compress_file(
    model: Model,
    picture: Picture,
    target: Path,
    verify: bool = False,
    max_memory: int = MAX_MEMORY,
    rate: float | None = None,
    progress: TilesDone | None = None,
) -> Compressed:
    """Write `picture` to the .cca file `target`; with `verify`, only if it decodes again.

    `rate` as in `Model.compress`. Raises `MismatchError` when verification fails; nothing is
    then written.
    """
    check_place(target)
    told = progress or (lambda done, of: None)
    encoded: TilesDone = (lambda done, of: told(done, 2 * of)) if verify else told
    data = compress(model, picture, picture.header(), picture.side(), max_memory, rate, encoded)
    if verify:
        decode_stream(
            model, read_stream(data), lambda top, block: None, max_memory,
            lambda done, of: told(of + done, 2 * of),
        )  # fmt: skip
    write_bytes(target, data)
    height, width = picture.size
    return Compressed(
        bytes=len(data), bpp=8 * len(data) / (width * height), width=width, height=height
    )


def decompress_file(
    model: Model,
    data: bytes,
    target: Path,
    preview: bool = False,
    deep: bool = False,
    max_memory: int = MAX_MEMORY,
    max_pixels: int = MAX_PIXELS,
    progress: TilesDone | None = None,
) -> Decompressed:
    """Write the picture of the stream `data` to `target`.

    `preview` takes a file whose end is missing; `deep` keeps 16-bit grey. Raises `CodecError`
    and `MismatchError` as `Model.decompress` does; of `target` before anything is decoded.
    """
    check_place(target)
    picture_format(target)
    stream = read_stream(data, max_pixels, partial=preview)
    check_model(model, stream.header)
    canvas = Canvas(stream.header, deep)
    decode_stream(model, stream, canvas.paint, max_memory, progress)
    write_image(canvas.image(stream.side), target)
    return Decompressed(
        width=stream.header.width, height=stream.header.height, complete=stream.complete
    )


def check_place(target: Path) -> None:
    """Raise `CodecError` unless a file can be made at `target`: before the work, not after it."""
    if target.is_dir():
        raise CodecError(f"{target} is a folder: name the file to write")
    if not target.parent.is_dir():
        raise CodecError(f"there is no folder {target.parent} to write {target.name} into")


def read_file(path: Path) -> bytes:
    """Return the bytes of a .cca file; a missing one raises `CodecError`."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CodecError(f"there is no file {path}") from error


def find_model(data: bytes, folders: Sequence[Path]) -> Path:
    """Return the model file that made the stream `data`, by its fingerprint.

    It lies in one of `folders`, or comes with the package. Raises `CodecError` when it doesn't.
    """
    wanted = read_header(data).fingerprint
    for folder in (*folders, box.FOLDER):
        for file in sorted(folder.glob("*.safetensors")):
            if stored_fingerprint(file).startswith(wanted):
                return file
    raise CodecError(
        f"no model with the fingerprint {wanted} lies beside the file or in the working folder; "
        "name it with --model"
    )
