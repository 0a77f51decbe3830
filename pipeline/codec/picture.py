"""Reads and writes picture files: grey, alpha, 16 bits, colour profiles, orientation."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.codec.bitstream import MAX_PIXELS, Header
from pipeline.codec.errors import CodecError
from pipeline.codec.mark import with_mark
from pipeline.codec.side import inflate, unpack_profile
from pipeline.common import pictures
from pipeline.common.atomic import write_bytes
from pipeline.common.special import NOT_THERE, is_special

if TYPE_CHECKING:
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Written:
    """A format that pictures are written in: Pillow's options for the least loss, what it keeps.

    Pillow's other formats are documents, or change a picture's size, as formats of icons do.
    """

    options: dict[str, Any] = field(default_factory=dict)
    alpha: bool = True
    deep: bool = False


WRITTEN = {
    "AVIF": Written({"quality": 100, "subsampling": "4:4:4"}),
    "BMP": Written(alpha=False),
    "DDS": Written(),
    "DIB": Written(alpha=False),
    "GIF": Written(alpha=False),
    "HEIF": Written({"quality": -1, "chroma": 444}),
    "JPEG": Written({"quality": 95, "subsampling": 0}, alpha=False),
    "JPEG2000": Written(deep=True),
    "JXL": Written({"lossless": True}, deep=True),
    "PCX": Written(alpha=False),
    "PNG": Written(deep=True),
    "PPM": Written(alpha=False, deep=True),
    "QOI": Written(),
    "SGI": Written(),
    "TGA": Written(),
    "TIFF": Written(deep=True),
    "WEBP": Written({"lossless": True, "exact": True}),
}


@dataclass(frozen=True)
class Picture:
    """A picture to be coded: its pixels, its alpha and its colour profile.

    `pixels` are uint8 or uint16, (H, W) when grey, else (H, W, 3); `alpha` is (H, W), or None if
    opaque; `profile` is an ICC profile or None.
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
        """Whether the picture has a single channel."""
        return self.pixels.ndim == 2

    @property
    def deep(self) -> bool:
        """Whether the pixels have 16 bits."""
        return self.pixels.dtype == np.uint16

    @property
    def x(self) -> Tensor:
        """The whole picture, float32 (1, 3, H, W) in [0, 1]."""
        return self.region(slice(None), slice(None))

    def region(self, rows: slice, columns: slice) -> Tensor:
        """Return a part of the picture, float32 (1, 3, rows, columns) in [0, 1]."""
        import torch

        return torch.from_numpy(self.array(rows, columns)).permute(2, 0, 1)[None]

    def array(
        self, rows: slice = slice(None), columns: slice = slice(None)
    ) -> npt.NDArray[np.float32]:
        """Return the picture, or a part of it, float32 (rows, columns, 3) in [0, 1]."""
        part = np.ascontiguousarray(self.pixels[rows, columns], np.float32)
        part /= np.float32(65535 if self.deep else 255)
        return np.repeat(part[:, :, None], 3, axis=2) if self.grey else part

    def header(self) -> Header:
        """Return the header of a stream for this picture; size and model are set later."""
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


def read_picture(
    source: Path | bytes, max_pixels: int = MAX_PIXELS, profile: bool = True
) -> Picture:
    """Read a picture from its file or its bytes, by the policy of `pipeline.common.pictures`.

    `profile` keeps its ICC profile; without it a picture that has one is converted to sRGB (and to
    8 bits), so that its colours stay the same. Raises `CodecError` when the picture is refused.
    """
    name = str(source) if isinstance(source, Path) else "what was given"
    try:
        if isinstance(source, Path) and source.is_dir():
            raise CodecError(f"{name} is a folder, not a picture")
        content = pictures.read(source, max_pixels)
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        raise CodecError(f"there is no picture {name}") from error
    except pictures.PictureError as error:
        raise CodecError(_sentence(name, error)) from error
    if content.profile is None or profile:
        return Picture(content.samples, content.alpha, content.profile)
    return Picture(content.in_srgb(), content.alpha)


def _sentence(name: str, error: pictures.PictureError) -> str:
    if error.refusal is pictures.Refusal.UNSUPPORTED:
        return f"{name} can't be read: {error.detail}"
    if error.refusal is pictures.Refusal.TOO_LARGE:
        return f"{name} is too large: {error.detail}"
    return f"{name} is not a picture that can be read: {error.detail}"


class Canvas:
    """The pixels of a decoded picture, painted from top to bottom in the source's mode.

    `deep` asks for 16 bits where the source was 16-bit grey.
    """

    def __init__(self, header: Header, deep: bool = False) -> None:
        self.header = header
        self.deep = deep and header.deep and header.grey
        shape = (header.height, header.width) if header.grey else (header.height, header.width, 3)
        self.pixels = np.zeros(shape, np.uint16 if self.deep else np.uint8)

    def paint(self, top: int, block: Tensor | npt.NDArray[np.float32]) -> None:
        """Paint a block (3, rows, W) in [0, 1] whose first row is `top`."""
        values = np.asarray(block)
        values = values.mean(0) if self.header.grey else values.transpose(1, 2, 0)
        rounded = np.rint(values * (65535 if self.deep else 255))
        self.pixels[top : top + block.shape[1]] = rounded.astype(self.pixels.dtype)

    def image(self, side: dict[str, bytes]) -> Image.Image:
        """Return the picture with its side data; damaged side data raise `CodecError`."""
        image = Image.fromarray(self.pixels)
        if self.header.alpha and "alpha" in side:
            alpha = _unpack_alpha(side["alpha"], self.header)
            if self.deep:
                return _with_transparent_value(self.pixels, alpha)
            image.putalpha(Image.fromarray(alpha))
        if self.header.profile and "profile" in side:
            image.info["icc_profile"] = unpack_profile(side["profile"])
        return image


def _with_transparent_value(pixels: Pixels, alpha: Bytes) -> Image.Image:
    """Return 16-bit grey `pixels` (H, W); transparent ones have the value in a PNG's tRNS chunk.

    The source had such a value too: no format that Pillow reads has both 16-bit grey and alpha. No
    opaque pixel has the value; if all values are taken, pixels of the rarest one move by one step.
    """
    opaque = alpha > 0
    counts = np.bincount(pixels[opaque], minlength=65536)
    value = int(counts.argmin())
    marked = np.where(pixels == value, value + 1 if value < 65535 else value - 1, pixels)
    image = Image.fromarray(np.where(opaque, marked, value).astype(np.uint16))
    image.info["transparency"] = value
    return image


def picture_format(path: Path) -> str:
    """Return Pillow's name for the format of `path`; raise `CodecError` if it can't be written."""
    kind = pictures.format_of(path.name)
    if kind is None:
        raise CodecError(f"{path.name} has no suffix of a picture format; take .png, say")
    if kind not in WRITTEN or kind not in Image.SAVE:
        raise CodecError(f"{path.name}: pictures are not written as {kind}; take .png, say")
    return kind


def write_image(image: Image.Image, path: Path, made: bytes | None = None) -> None:
    """Write `image` to `path`, in the format of its suffix (PNG for a pipe or device), whole.

    `made`, 32 bytes, is what a PNG's mark holds (`pipeline.codec.mark`).
    """
    kind = "PNG" if is_special(path) else picture_format(path)
    write_bytes(path, encoded(image, kind, path, made))


def encoded(image: Image.Image, kind: str, path: Path, made: bytes | None = None) -> bytes:
    """Return the bytes of `image` in Pillow's format `kind`, for the file `path`.

    `made` is as in `write_image`. Nothing is lost if the format allows that. Raises `CodecError`
    when alpha or 16 bits would be lost, and when the format can't hold such a picture.
    """
    lost = _left_out(image, kind)
    if lost:
        raise CodecError(f"{path} can't be written as {kind} with {lost}; take .png")
    profile = image.info.get("icc_profile")
    options = {**WRITTEN[kind].options, **({"icc_profile": profile} if profile else {})}
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except (OSError, ValueError) as error:
        raise CodecError(f"{path} can't be written as {kind}: {error}; take .png") from error
    data = file.getvalue()
    return data if made is None or kind != "PNG" else with_mark(data, made)


def _left_out(image: Image.Image, kind: str) -> str:
    """Name the parts of `image` that the format `kind` does not keep; empty if it keeps all."""
    if "transparency" in image.info and kind != "PNG":
        return "16 bits and alpha"
    if image.mode in ("LA", "RGBA") and not WRITTEN[kind].alpha:
        return "alpha"
    return "16 bits" if image.mode.startswith("I;16") and not WRITTEN[kind].deep else ""


def _pack_alpha(alpha: Bytes) -> bytes:
    """Compress alpha (H, W) losslessly: differences between rows, deflated."""
    rows = np.diff(alpha, axis=0, prepend=np.zeros((1, alpha.shape[1]), np.uint8))
    return zlib.compress(rows.tobytes(), 9)


def _unpack_alpha(packed: bytes, header: Header) -> Bytes:
    size = header.width * header.height
    raw = inflate(packed, size, "alpha channel")
    if len(raw) != size:
        raise CodecError("the file is damaged: its alpha channel has another size")
    rows = np.frombuffer(raw, np.uint8).reshape(header.height, header.width)
    return np.cumsum(rows, axis=0, dtype=np.uint8)
