"""How large a picture may be: checked before memory is taken for it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pipeline.common.pictures.errors import PictureError, Refusal

# Pixels of a picture: where Pillow refuses to open one (twice its `MAX_IMAGE_PIXELS`).
MAX_PIXELS = 178_956_970
# Bytes of a file: a picture of so many pixels in 16-bit RGB, uncompressed, fits.
MAX_BYTES = 1 << 30


def check_bytes(size: int) -> None:
    """Raise `PictureError` for a file of `size` bytes that is too large for a picture."""
    if size > MAX_BYTES:
        raise PictureError(Refusal.TOO_LARGE, f"{size:,} bytes, over {MAX_BYTES:,}")


def check_pixels(width: int, height: int, limit: int = MAX_PIXELS) -> None:
    """Raise `PictureError` for a picture of more than `limit` pixels."""
    if width * height > limit:
        size = f"{width} x {height}"
        raise PictureError(Refusal.TOO_LARGE, f"{size}, over the limit of {limit} pixels")


def read_bytes(path: Path) -> bytes:
    """Return what the file at `path` holds.

    Raises:
        PictureError: it is too large for a picture, or no regular file.
        OSError: it is not there, or cannot be read.
    """
    # A FIFO that nobody writes to would be waited for: it is opened without waiting, then refused.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise PictureError(Refusal.NOT_A_PICTURE, "it is no regular file")
        check_bytes(status.st_size)
        return file.read(MAX_BYTES + 1)
