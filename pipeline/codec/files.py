"""Compresses picture files to `.cca` files and back; each is written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.codec.backends import compress, decode_stream
from pipeline.codec.bitstream import MAGIC, MAX_PIXELS, read_stream
from pipeline.codec.errors import CodecError
from pipeline.codec.mark import made_of, mark_of
from pipeline.codec.matching import check_model
from pipeline.codec.memory import MAX_MEMORY
from pipeline.codec.picture import Canvas, Picture, picture_format, write_image
from pipeline.codec.rates import Limit, search
from pipeline.common.atomic import write_bytes
from pipeline.common.special import NOT_THERE, is_special, read_all

if TYPE_CHECKING:
    from PIL import Image

    from pipeline.codec.backends import AnyModel
    from pipeline.codec.bitstream import Stream
    from pipeline.codec.tiles import TilesDone

# The largest file that is read, in bytes: more than any encoder writes.
MAX_FILE = 1 << 31


class Compressed(TypedDict):
    """The result of compressing a picture; `encodes` counts the encodes that a limit took."""

    bytes: int
    bpp: float
    width: int
    height: int
    rate: float | None
    encodes: int


class Decompressed(TypedDict):
    """The result of decompressing; `complete` is False for a preview of a cut file."""

    width: int
    height: int
    complete: bool


def compress_file(
    model: AnyModel,
    picture: Picture,
    target: Path,
    verify: bool = False,
    max_memory: int = MAX_MEMORY,
    rate: float | None = None,
    progress: TilesDone | None = None,
    limit: Limit | None = None,
) -> Compressed:
    """Write `picture` to the .cca file `target`; with `verify`, only if it decodes again.

    `rate` is as in `Model.compress`; with `limit`, the best stream within it is searched. Raises
    `MismatchError` when verification fails and `CodecError` when no stream keeps to `limit`;
    nothing is written then.
    """
    check_place(target)
    report = progress or (lambda done, of: None)
    encoded: TilesDone = (lambda done, of: report(done, 2 * of)) if verify else report
    data, rate, encodes = _stream(model, picture, max_memory, rate, limit, encoded)
    if verify:
        decode_stream(
            model, read_stream(data), lambda top, block: None, max_memory,
            lambda done, of: report(of + done, 2 * of),
        )  # fmt: skip
    write_bytes(target, data)
    height, width = picture.size
    return Compressed(
        bytes=len(data),
        bpp=8 * len(data) / (width * height),
        width=width,
        height=height,
        rate=rate,
        encodes=encodes,
    )


def _stream(
    model: AnyModel,
    picture: Picture,
    max_memory: int,
    rate: float | None,
    limit: Limit | None,
    progress: TilesDone | None,
) -> tuple[bytes, float | None, int]:
    """Return the stream of a picture, its rate, and how many encodes it took."""
    side = picture.side()

    def encode(rate: float | None) -> bytes:
        return compress(model, picture, picture.header(), side, max_memory, rate, progress)

    if limit is None:
        rate = model.config.check_rate(rate)
        return encode(rate), rate, 1
    try:
        best = search(encode, model.config, limit.of(*picture.size))
    except CodecError as error:
        extra = sum(map(len, side.values()))
        note = f"; {extra} bytes are its alpha and colour profile" if extra else ""
        raise CodecError(f"it can't be held to {limit}: {error}{note}") from error
    return best.data, best.rate, best.encodes


def decompress_file(
    model: AnyModel,
    data: bytes,
    target: Path,
    preview: bool = False,
    deep: bool = False,
    max_memory: int = MAX_MEMORY,
    max_pixels: int = MAX_PIXELS,
    progress: TilesDone | None = None,
) -> Decompressed:
    """Write the picture of the stream `data` to `target`.

    `preview` also accepts a file whose end is missing; `deep` keeps 16-bit grey. Raises
    `CodecError` and `MismatchError` as `Model.decompress` does; an unusable `target` is refused
    before anything is decoded.
    """
    check_place(target)
    if not is_special(target):
        picture_format(target)
    image, stream = decoded(model, data, preview, deep, max_memory, max_pixels, progress)
    write_image(image, target, made_of(data, deep, not stream.complete))
    return Decompressed(
        width=stream.header.width, height=stream.header.height, complete=stream.complete
    )


def decoded(
    model: AnyModel,
    data: bytes,
    preview: bool = False,
    deep: bool = False,
    max_memory: int = MAX_MEMORY,
    max_pixels: int = MAX_PIXELS,
    progress: TilesDone | None = None,
) -> tuple[Image.Image, Stream]:
    """Return the picture of the stream `data`, with its side data, and the parsed stream.

    Options and errors are those of `decompress_file`.
    """
    stream = read_stream(data, max_pixels, partial=preview)
    check_model(model, stream.header)
    canvas = Canvas(stream.header, deep)
    decode_stream(model, stream, canvas.paint, max_memory, progress)
    return canvas.image(stream.side), stream


def check_place(target: Path) -> None:
    """Raise `CodecError` unless a file can be made at `target`; called before any work."""
    if target.is_dir():
        raise CodecError(f"{target} is a folder: name the file to write")
    if not target.parent.is_dir():
        raise CodecError(f"there is no folder {target.parent} to write {target.name} into")


def read_file(path: Path, limit: int = MAX_FILE) -> bytes:
    """Return the bytes of a .cca file, pipe or device.

    Raises `CodecError` when it is missing, and when it has more than `limit` bytes.
    """
    try:
        if is_special(path):
            data = read_all(path, limit + 1)
        else:
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        if error.errno not in {*NOT_THERE, errno.EISDIR}:
            raise
        raise CodecError(f"there is no file {path}") from error
    if len(data) > limit:
        raise CodecError(f"{path} is too large: more than {limit:,} bytes")
    return data


def is_stream(path: Path) -> bool:
    """Tell whether the file at `path` begins like a stream, which `compress` may replace.

    A pipe does not count: reading from it would wait for a writer.
    """
    if is_special(path):
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def is_decoded(path: Path) -> bool:
    """Tell whether `path` is a picture that `decompress` wrote and nobody has changed since."""
    return mark_of(path) is not None


def is_made_of(path: Path, stream: bytes, deep: bool) -> bool:
    """Tell whether the picture at `path` is what `decompress` makes of the whole `stream`."""
    return mark_of(path) == made_of(stream, deep, False)
