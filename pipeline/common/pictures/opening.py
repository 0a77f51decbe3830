"""Opens pictures by their contents, within limits, and decodes all of them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.common.pictures.errors import PictureError, Refusal, first_line
from pipeline.common.pictures.formats import SAME, openable, usual_ending
from pipeline.common.pictures.jpeg import SIGNATURE, without_metadata
from pipeline.common.pictures.limits import MAX_PIXELS, check_bytes, check_pixels, read_bytes
from pipeline.common.pictures.orientation import orientation_of, shield_tiff
from pipeline.common.pictures.quiet import quiet_libtiff

HEAD = 4096  # bytes that tell a format
# Where a program sets up no logging, Python would write what Pillow logs to standard error.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Header:
    """What a picture's header says.

    `format` is Pillow's name, `mode` Pillow's mode; `width` and `height` are in pixels, before
    the picture is turned upright as `orientation` (EXIF's, 1 is upright) says.
    """

    format: str
    width: int
    height: int
    mode: str
    orientation: int

    @property
    def ending(self) -> str:
        """The file name's ending that decoders know the format by."""
        return usual_ending(self.format)


@contextmanager
def opened(source: bytes | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Yield the picture in `source` with its header read and no pixel decoded.

    Raises:
        PictureError: it is no picture, or too large.
        OSError: the file is not there, or cannot be read.
    """
    data = read_bytes(source) if isinstance(source, Path) else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what is decided here
        with _identified(data) as image:
            check_pixels(image.width, image.height, max_pixels)
            yield image


def header_of(image: Image.Image) -> Header:
    """Return what the header of `image` says; of a PNG that is not loaded yet, as far as read."""
    name = image.format or ""
    return Header(
        SAME.get(name, name), image.width, image.height, image.mode, orientation_of(image)
    )


def load(image: Image.Image) -> None:
    """Decode all of the picture (its first frame); raises PictureError if it is damaged."""
    if image.format == "TIFF":
        quiet_libtiff()
        shield_tiff(image)
    try:
        image.load()
    except Image.DecompressionBombError as error:
        raise PictureError(Refusal.TOO_LARGE, first_line(error)) from None
    except MemoryError:
        raise PictureError(Refusal.TOO_LARGE, "it does not fit the memory") from None
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise PictureError(Refusal.DAMAGED, first_line(error)) from None


def _identified(data: bytes) -> Image.Image:
    check_bytes(len(data))
    formats = list(openable(data[:HEAD]))
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise PictureError(Refusal.TOO_LARGE, first_line(error)) from None
    except Exception as error:
        if data.startswith(SIGNATURE):
            bare = without_metadata(data)
            if len(bare) < len(data):  # its pixels may be whole where its metadata is not
                return _identified(bare)
        raise PictureError(Refusal.NOT_A_PICTURE, _why_not(error, data)) from None


def _why_not(error: Exception, data: bytes) -> str:
    """Return in words why Pillow did not open `data`."""
    if not isinstance(error, UnidentifiedImageError):
        return first_line(error)
    if not data:
        return "it is empty"
    return "its contents are of no known picture format, or damaged at their start"
