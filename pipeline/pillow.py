"""A Pillow plugin for `.cca` files, and so for all that reads pictures through Pillow.

    from PIL import Image
    from pipeline.pillow import register_cca_opener

    register_cca_opener()
    Image.open("photo.cca").show()
    image.save("photo.cca", quality=75)

A file is known by its first bytes. Opening it reads its header; torch and the model are loaded, and
the picture is decoded, when pixels are first asked for. `save` takes `quality` (0 to 100, or a
word), `rate`, `size` (the most bytes) or `bpp` (the most bits a pixel), and `icc_profile`.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.codec.bitstream import MAGIC, MAX_PIXELS, Header, read_header, read_stream
from pipeline.codec.errors import CodecError, MismatchError
from pipeline.common import pictures
from pipeline.common.errors import UsageError

if TYPE_CHECKING:
    from pipeline.codec.backends import AnyModel
    from pipeline.codec.finding import Models
    from pipeline.codec.picture import Picture

FORMAT, MIME, EXTENSION = "CCA", "image/x-cca", ".cca"
HEAD = 4096  # bytes that hold a header
MAX_FILE = 1 << 30  # bytes
_CHOICES = ("quality", "rate", "size", "bpp")

_lock = threading.Lock()


class _Options:
    """What `register_cca_opener` was told."""

    model: str | Path = "box"
    folders: Sequence[Path] = ()
    device: str = "cpu"
    max_pixels: int = MAX_PIXELS
    models: Models | None = None
    encoder: AnyModel | None = None


def register_cca_opener(
    model: str | Path = "box",
    folders: Sequence[str | Path] = (),
    device: str = "cpu",
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Let Pillow open and save `.cca` files; calling it again changes the options.

    Args:
        model: the MODEL that saves, by default the one that comes with the package.
        folders: where to look for the models of files that others made; the package's own is
            always found, and so is a model beside a file that is opened by its name.
        device: where the networks run.
        max_pixels: a picture with more is not opened.
    """
    with _lock:
        _Options.model, _Options.device, _Options.max_pixels = model, device, max_pixels
        _Options.folders = [Path(folder) for folder in folders]
        _Options.models = _Options.encoder = None
    Image.register_open(FORMAT, CcaImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, EXTENSION)
    Image.register_mime(FORMAT, MIME)


class CcaImageFile(ImageFile.ImageFile):
    """A `.cca` file; its pixels are decoded when they are first asked for."""

    format = FORMAT
    format_description = "CCA learned image codec"

    def _open(self) -> None:
        """Read the header.

        Raises SyntaxError, as Pillow asks, for what is no such file, and UnidentifiedImageError
        with the reason for one that can't be opened: no other plugin would.
        """
        head = self._file().read(HEAD)
        if not _accept(head):
            raise SyntaxError("no .cca file")
        try:
            header = read_header(head, _Options.max_pixels)
        except CodecError as error:
            raise UnidentifiedImageError(self._named(error)) from error
        self._header: Header | None = header
        self._size = (header.width, header.height)
        self._mode = ("L" if header.grey else "RGB") + ("A" if header.alpha else "")
        self.info["fingerprint"] = header.fingerprint
        if header.rate is not None:
            self.info["rate"] = header.rate
        if header.profile:
            self._read_profile()
        self.tile = []

    def load(self) -> Any:
        """Decode the picture, once. Raises OSError where it can't be."""
        if self._header is not None and self.fp is not None:
            pixels = self._decoded()
            self._header = None
            self.fp = io.BytesIO(pixels.tobytes())
            self._exclusive_fp = True
            self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]
        return super().load()

    def _read_profile(self) -> None:
        from pipeline.codec.side import unpack_profile

        try:
            side = read_stream(self._bytes(), _Options.max_pixels, partial=True).side
            if "profile" in side:
                self.info["icc_profile"] = unpack_profile(side["profile"])
        except (CodecError, OSError):
            return  # what is wrong is told when the pixels are asked for

    def _file(self) -> IO[bytes]:
        if self.fp is None:
            raise OSError("the file is closed")
        return self.fp

    def _bytes(self) -> bytes:
        file = self._file()
        file.seek(0)
        data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            raise OSError(f"a .cca file of more than {MAX_FILE:,} bytes is not read")
        return data

    def _decoded(self) -> Image.Image:
        from pipeline.codec.files import decoded

        partial = ImageFile.LOAD_TRUNCATED_IMAGES
        try:
            data = self._bytes()
            model = _models(self.filename).of(data)
            image, _ = decoded(model, data, partial, max_pixels=_Options.max_pixels)
        except (CodecError, MismatchError) as error:
            raise OSError(self._named(error)) from error
        return image if image.mode == self.mode else image.convert(self.mode)

    def _named(self, error: Exception) -> str:
        return f"{_text(self.filename) or 'the .cca file'}: {error}"


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(MAGIC)


def _models(name: Any) -> Models:
    """Return what finds a file's model; the models that were loaded stay."""
    from pipeline.codec.finding import Models

    with _lock:
        if _Options.models is None:
            _Options.models = Models(_Options.folders, _Options.device, quick=True)
        if isinstance(name, str | bytes | Path) and name:
            _Options.models.look_in(Path(_text(name)).resolve().parent)
        return _Options.models


def _text(name: str | bytes | Path) -> str:
    return os.fsdecode(name)


def _encoder() -> AnyModel:
    from pipeline import load_model
    from pipeline.codec import box
    from pipeline.codec.finding import load_any

    with _lock:
        if _Options.encoder is None and box.is_meant(str(_Options.model)):
            _Options.encoder = load_any(box.box_model(), _Options.device, quick=True)
        if _Options.encoder is None:
            _Options.encoder = load_model(_Options.model, _Options.device)
        return _Options.encoder


def _save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """Write `image` to `file`. Raises OSError for what can't be coded or was asked wrongly."""
    from pipeline.codec.backends import compress
    from pipeline.codec.rates import search

    asked: dict[str, Any] = {
        key: value for key in _CHOICES if (value := image.encoderinfo.get(key)) is not None
    }
    try:
        if len(asked) > 1:
            raise CodecError(f"{' and '.join(asked)} all say how many bits: give one")
        model, picture = _encoder(), _picture(image)
        rate, limit = _wanted(asked, model, picture)
        side = picture.side()

        def encode(rate: float | None) -> bytes:
            return compress(model, picture, picture.header(), side, rate=rate)

        data = encode(rate) if limit is None else search(encode, model.config, limit).data
    except (UsageError, pictures.PictureError) as error:
        raise OSError(f"cannot write {_text(filename) or 'the picture'} as CCA: {error}") from error
    file.write(data)


def _wanted(
    asked: dict[str, Any], model: AnyModel, picture: Picture
) -> tuple[float | None, int | None]:
    """Return the rate, or the most bytes, that was asked for."""
    from pipeline.codec.rates import Limit, parse_quality, rate_of_quality
    from pipeline.common.sizes import parse_size

    if "quality" in asked:
        return rate_of_quality(model.config, parse_quality(str(asked["quality"]))), None
    if "size" in asked:
        return None, parse_size(asked["size"])
    if "bpp" in asked:
        return None, Limit(bits=float(asked["bpp"])).of(*picture.size)
    return asked.get("rate"), None


def _picture(image: Image.Image) -> Picture:
    """Return what is coded of an image in memory, by the policy of `pipeline.common.pictures`."""
    from pipeline.codec.picture import Picture
    from pipeline.common.pictures.reading import picture_of

    asked: dict[str, Any] = image.encoderinfo
    image.load()
    if "icc_profile" in asked:
        image = image.copy()
        image.info["icc_profile"] = asked["icc_profile"]
    found = picture_of(image)
    return Picture(found.samples, found.alpha, found.profile)
