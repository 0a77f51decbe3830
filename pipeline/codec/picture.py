"""Picture files to tensors and back: grey, alpha, 16 bits, colour profiles, orientation."""

from __future__ import annotations

import os
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipeline.codec.bitstream import MAX_PIXELS, Header
from pipeline.codec.errors import CodecError

Bytes = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_GREY_MODES = ("1", "L", "LA", "La", *_DEEP_MODES)
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
# Formats that lose by default what the codec has kept.
_BEST: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True},
    "JPEG": {"quality": 95, "subsampling": 0},
}


@dataclass(frozen=True)
class Picture:
    """A picture to be coded: its pixels, and what its file knows beside them.

    `pixels` are uint8 or uint16, (H, W) when grey, else (H, W, 3); `alpha` is (H, W) or None
    for opaque; `profile` an ICC profile.
    """

    pixels: Pixels
    alpha: Bytes | None = None
    profile: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def grey(self) -> bool:
        """Whether there is one channel."""
        return self.pixels.ndim == 2

    @property
    def deep(self) -> bool:
        """Whether there are 16 bits."""
        return self.pixels.dtype == np.uint16

    @property
    def x(self) -> Tensor:
        """The whole picture, float32 (1, 3, H, W) in [0, 1]."""
        return self.region(slice(None), slice(None))

    def region(self, rows: slice, columns: slice) -> Tensor:
        """Return a part of the picture, float32 (1, 3, rows, columns) in [0, 1]."""
        part = np.ascontiguousarray(self.pixels[rows, columns], np.float32)
        planes = torch.from_numpy(part / np.float32(65535 if self.deep else 255))
        x = planes.expand(3, -1, -1) if self.grey else planes.permute(2, 0, 1)
        return x[None]

    def header(self) -> Header:
        """Return what a stream should say of this picture (size and model come later)."""
        return Header(
            1,
            1,
            "",
            grey=self.grey,
            alpha=self.alpha is not None,
            profile=self.profile is not None,
            deep=self.deep,
        )

    def side(self) -> dict[str, bytes]:
        """Return the side data that goes with the header."""
        side = {}
        if self.profile is not None:
            side["profile"] = zlib.compress(self.profile, 9)
        if self.alpha is not None:
            side["alpha"] = _pack_alpha(self.alpha)
        return side


def read_picture(path: Path, max_pixels: int = MAX_PIXELS, profile: bool = True) -> Picture:
    """Read any picture that Pillow can; `profile` keeps its ICC profile.

    EXIF orientation is applied to the pixels; 16-bit grey keeps its 16 bits, 16-bit colour is
    read as 8 bits; of several frames the first is taken. Raises `CodecError` when the file is no
    picture, has too many pixels, or samples without a known range.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            # The limit that counts is `max_pixels`.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.width * image.height > max_pixels:
                raise CodecError(
                    f"{path} has {image.width} x {image.height} pixels, more than the limit of "
                    f"{max_pixels}"
                )
            image.load()
            _check_range(image, path)
            icc = image.info.get("icc_profile") if profile else None
            return _picture(ImageOps.exif_transpose(image), icc)
    except FileNotFoundError as error:
        raise CodecError(f"there is no picture {path}") from error
    except CodecError:
        raise
    # Decoders of broken files raise whatever comes: struct.error, SyntaxError, IndexError, ...
    except Exception as error:
        raise CodecError(f"{path} is not a picture that can be read: {error}") from error


def _check_range(image: Image.Image, path: Path) -> None:
    """Refuse samples of which nobody knows what is white: they would come out black or clipped."""
    extremes: Any = image.getextrema() if image.mode == "I" else (0, 0)
    if image.mode == "F" or min(extremes) < 0 or max(extremes) > 65535:
        raise CodecError(
            f"{path} has samples of 32 bits ({image.mode}), whose range isn't known: convert it to "
            "8 or 16 bits"
        )


def _picture(image: Image.Image, icc: Any) -> Picture:
    grey, deep = image.mode in _GREY_MODES, image.mode in _DEEP_MODES
    alpha = None
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA"))[..., 3].copy()
        alpha = None if alpha.min() == 255 else alpha
    # A profile that fits RGB or grey pixels; CMYK's doesn't fit what is made of it.
    keep = isinstance(icc, bytes) and icc and image.mode not in ("CMYK", "LAB", "YCbCr")
    pixels: Pixels
    if deep:
        pixels = np.asarray(image).clip(0, 65535).astype(np.uint16)
    else:
        pixels = np.asarray(image.convert("L" if grey else "RGB")).copy()
    return Picture(pixels, alpha, icc if keep else None)


class Canvas:
    """What a decoded picture is painted on, from top to bottom, in the source's mode.

    `deep` asks for 16 bits where the source was 16-bit grey.
    """

    def __init__(self, header: Header, deep: bool = False) -> None:
        self.header = header
        self.deep = deep and header.deep and header.grey
        shape = (header.height, header.width) if header.grey else (header.height, header.width, 3)
        self.pixels = np.zeros(shape, np.uint16 if self.deep else np.uint8)

    def paint(self, top: int, block: Tensor) -> None:
        """Paint a block (3, rows, W) in [0, 1] whose first row is `top`."""
        values = block.numpy()
        values = values.mean(0) if self.header.grey else values.transpose(1, 2, 0)
        rounded = np.rint(values * (65535 if self.deep else 255))
        self.pixels[top : top + block.shape[1]] = rounded.astype(self.pixels.dtype)

    def image(self, side: dict[str, bytes]) -> Image.Image:
        """Return the picture with its side data, of which damaged ones raise `CodecError`."""
        image = Image.fromarray(self.pixels)
        if self.header.alpha and "alpha" in side and not self.deep:
            image.putalpha(Image.fromarray(_unpack_alpha(side["alpha"], self.header)))
        if self.header.profile and "profile" in side:
            image.info["icc_profile"] = _inflate(side["profile"], 2**24, "colour profile")
        return image


def picture_format(path: Path) -> str:
    """Return Pillow's name for the format of `path`'s suffix; `CodecError` where it writes none."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise CodecError(f"{path.name} has no suffix of a picture format; take .png, say")
    return kind


def write_image(image: Image.Image, path: Path) -> None:
    """Write `image` to `path`, in the format of its suffix, whole or not at all."""
    kind = picture_format(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    options = _BEST.get(kind, {})
    profile = image.info.get("icc_profile")
    try:
        with partial.open("wb") as file:
            image.save(file, kind, **options, **({"icc_profile": profile} if profile else {}))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise CodecError(f"{path} can't be written as {kind}: {error}; take .png") from error
    finally:
        partial.unlink(missing_ok=True)


def _pack_alpha(alpha: Bytes) -> bytes:
    """Return alpha (H, W) losslessly: differences between rows, deflated."""
    rows = np.diff(alpha, axis=0, prepend=np.zeros((1, alpha.shape[1]), np.uint8))
    return zlib.compress(rows.tobytes(), 9)


def _unpack_alpha(packed: bytes, header: Header) -> Bytes:
    size = header.width * header.height
    raw = _inflate(packed, size, "alpha channel")
    if len(raw) != size:
        raise CodecError("the file is damaged: its alpha channel has another size")
    rows = np.frombuffer(raw, np.uint8).reshape(header.height, header.width)
    return np.cumsum(rows, axis=0, dtype=np.uint8)


def _inflate(packed: bytes, limit: int, what: str) -> bytes:
    """Undo zlib, never making more than `limit` bytes."""
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(packed, limit)
    except zlib.error as error:
        raise CodecError(f"the file is damaged: its {what} can't be unpacked") from error
    if not engine.eof and engine.decompress(engine.unconsumed_tail, 1):
        raise CodecError(f"the file is damaged: its {what} is too long")
    return raw
