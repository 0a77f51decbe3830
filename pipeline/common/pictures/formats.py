"""The formats that pictures are read from, and the endings of their files."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.common.atomic import PARTIAL
from pipeline.common.pictures.errors import PictureError, Refusal


@dataclass(frozen=True)
class Format:
    """A format: Pillow's name for it, and the endings of its files, the usual one first.

    `plugin` is the package that reads it where Pillow does not.
    """

    name: str
    endings: tuple[str, ...]
    plugin: str = ""


# In the order in which they are tried. PostScript, PDF and the like are programs, not pictures, and
# stay out, as do films. TGA has no signature, so it comes last.
FORMATS = (
    Format("JPEG", ("jpg", "jpeg", "jpe", "jfif", "mpo")),
    Format("PNG", ("png", "apng")),
    Format("WEBP", ("webp",)),
    Format("GIF", ("gif",)),
    Format("TIFF", ("tif", "tiff")),
    Format("BMP", ("bmp",)),
    Format("DIB", ("dib",)),
    Format("JPEG2000", ("jp2", "j2k", "jpc", "jpf", "jpx", "j2c")),
    Format("AVIF", ("avif", "avifs")),
    Format("HEIF", ("heic", "heif", "hif"), plugin="pillow_heif"),
    Format("JXL", ("jxl",), plugin="pillow_jxl"),
    Format("PPM", ("ppm", "pgm", "pbm", "pnm", "pfm")),
    Format("ICO", ("ico",)),
    Format("CUR", ("cur",)),
    Format("ICNS", ("icns",)),
    Format("QOI", ("qoi",)),
    Format("PSD", ("psd",)),
    Format("DDS", ("dds",)),
    Format("SGI", ("sgi",)),
    Format("SUN", ("ras",)),
    Format("PCX", ("pcx",)),
    Format("TGA", ("tga", "icb", "vda", "vst")),
)
ENDINGS = frozenset(ending for one in FORMATS for ending in one.endings)
# Pillow's own name for a JPEG with more pictures behind the first one.
SAME = {"MPO": "JPEG"}
EXTRA = "formats"  # what to install with cca-pipeline for all plugins

HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
AVIF_BRANDS = frozenset({b"avif", b"avis"})
JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


def is_picture(name: str) -> bool:
    """Whether a file called `name` is meant as a picture: a known ending, and not hidden."""
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return bool(dot and stem) and not stem.startswith(".") and ending.lower() in ENDINGS


def find_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the picture files below `folder`, and all else there; see `find_files`."""
    return find_files(folder, is_picture)


def find_files(folder: Path, wanted: Callable[[str], bool]) -> tuple[list[Path], list[Path]]:
    """Return the files below `folder` whose names are `wanted`, and all else, sorted by path.

    Hidden files and folders, links to folders or to nothing, pipes and devices are of the second
    kind, whatever they are called; what lies in such folders is not listed, and neither is what
    a writer has not finished.
    """
    found: list[Path] = []
    others: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=_refuse):
        aside = [one for one in folders if one.startswith(".") or Path(root, one).is_symlink()]
        folders[:] = [one for one in folders if one not in aside]
        others += [Path(root, one) for one in aside]
        for name in files:
            path = Path(root, name)
            if name.startswith(".") and name.endswith(PARTIAL):
                continue
            taken = not name.startswith(".") and wanted(name) and path.is_file()
            (found if taken else others).append(path)
    return sorted(found), sorted(others)


def _refuse(error: OSError) -> None:
    """Raise what the system says of a folder that can't be listed: nothing in it was looked at."""
    raise error


def format_of(name: str) -> str | None:
    """Return Pillow's name for the format that the ending of a file `name` stands for, or None.

    A plugin for it is loaded if it is installed.
    """
    ending = name.rpartition(".")[2].lower()
    found = next((one for one in FORMATS if ending in one.endings), None)
    if found is None:
        return None
    Image.init()
    if found.plugin:
        _plugin_is_there(found.plugin)
    return found.name


def usual_ending(name: str) -> str:
    """Return the ending by which decoders know a picture of the format `name` (Pillow's)."""
    name = SAME.get(name.upper(), name.upper())
    endings = {one.name: one.endings[0] for one in FORMATS}
    return endings.get(name, name.lower())


def openable(head: bytes) -> Iterable[str]:
    """Return the names of the formats to try on a file that starts with `head`, in order.

    Raises:
        PictureError: it needs a plugin that is not installed.
    """
    packed = _packed_in_a_plugin(head)
    if packed is not None:
        if not _plugin_is_there(packed.plugin):
            raise PictureError(
                Refusal.UNSUPPORTED,
                f"{packed.name} is read with {packed.plugin.replace('_', '-')}: "
                f"pip install 'cca-pipeline[{EXTRA}]'",
            )
        return (packed.name,)
    return _of_pillow()


@functools.cache
def _of_pillow() -> tuple[str, ...]:
    Image.init()
    return tuple(one.name for one in FORMATS if not one.plugin and one.name in Image.OPEN)


def _packed_in_a_plugin(head: bytes) -> Format | None:
    if head.startswith(JXL_STARTS):
        name = "JXL"
    elif head[4:8] == b"ftyp" and _is_heif(head):
        name = "HEIF"
    else:
        return None
    return next(one for one in FORMATS if one.name == name)


def _is_heif(head: bytes) -> bool:
    """Whether a file of the ISO base media format holds a picture coded by HEVC, not by AV1."""
    size = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
    return bool(brands & HEIF_BRANDS) and not brands & AVIF_BRANDS


@functools.cache
def _plugin_is_there(package: str) -> bool:
    """Import the plugin `package`, which tells Pillow of its format."""
    try:
        plugin = importlib.import_module(package)
    except ImportError:
        return False
    if package == "pillow_heif":
        plugin.register_heif_opener()
    return True
