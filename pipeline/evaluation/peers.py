"""The classical codecs that a model is compared with: how each is run, at which settings.

Each gets the same 8-bit RGB samples without metadata, writes a real file with one thread, and is
decoded from that file. Settings go from the lowest rate to the highest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features
from PIL import __version__ as pillow_version

from pipeline.evaluation import vvc
from pipeline.evaluation.errors import EvaluationError
from pipeline.evaluation.metrics import Picture


class PeerMissingError(Exception):
    """This machine can't run a codec; the message tells what provides it."""


@dataclass(frozen=True)
class Peer:
    """A classical codec.

    `encode(picture, setting, path)` writes a file, `decode(path)` returns (H, W, 3) uint8,
    `version()` names the implementation or raises PeerMissingError.
    """

    name: str
    label: str
    note: str
    suffix: str
    settings: tuple[int, ...]
    encode: Callable[[Picture, int, Path], None]
    decode: Callable[[Path], Picture]
    version: Callable[[], str]


def _save(**options: Any) -> Callable[[Picture, int, Path], None]:
    """Return an encoder through Pillow; an option of value SETTING (or LAYER) gets the setting."""

    def encode(picture: Picture, setting: int, path: Path) -> None:
        filled: dict[str, Any] = {
            key: setting if value is SETTING else [setting] if value is LAYER else value
            for key, value in options.items()
        }
        Image.fromarray(picture).save(path, **filled)

    return encode


def _open(path: Path) -> Picture:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"), dtype=np.uint8)


SETTING, LAYER = object(), object()


def _pillow(feature: str) -> Callable[[], str]:
    def version() -> str:
        if not features.check(feature):
            raise PeerMissingError(f"this Pillow {pillow_version} was built without {feature}")
        return f"Pillow {pillow_version}, {features.version(feature) or 'version unknown'}"

    return version


def _jxl_version() -> str:
    try:
        import pillow_jxl  # noqa: F401 - registers the format
    except ImportError as error:
        raise PeerMissingError("needs the package pillow-jxl-plugin (extra `peers`)") from error
    return f"pillow-jxl-plugin {metadata.version('pillow-jxl-plugin')}"


def _heif_version() -> str:
    try:
        import pillow_heif
    except ImportError as error:
        raise PeerMissingError("needs the package pillow-heif (extra `peers`)") from error
    pillow_heif.register_heif_opener()
    encoder = pillow_heif.libheif_info()["encoders"].get("x265")
    if not encoder:
        raise PeerMissingError("this pillow-heif was built without the x265 encoder")
    return f"pillow-heif {pillow_heif.__version__}, {encoder}"


def _vvc_version() -> str:
    try:
        return vvc.version()
    except ImportError as error:
        raise PeerMissingError("needs the package imageio-ffmpeg (extra `peers`)") from error
    except vvc.VVCMissingError as error:
        raise PeerMissingError(str(error)) from error


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "jpeg", "JPEG", "4:2:0, optimised Huffman tables, progressive", ".jpg",
            (1, 3, 5, 8, 12, 18, 25, 35, 50, 65, 78, 88, 94),
            _save(format="JPEG", quality=SETTING, optimize=True, progressive=True,
                  subsampling="4:2:0"),
            _open, _pillow("jpg"),
        ),
        Peer(
            "jpeg2000", "JPEG 2000", "9/7 wavelet, colour transform, one quality layer", ".jp2",
            (800, 400, 220, 140, 96, 64, 44, 32, 22, 16, 11, 7),
            _save(format="JPEG2000", quality_mode="rates", quality_layers=LAYER,
                  irreversible=True, mct=1),
            _open, _pillow("jpg_2000"),
        ),
        Peer(
            "webp", "WebP", "lossy, 4:2:0, method 6", ".webp",
            (0, 4, 10, 20, 35, 50, 65, 76, 84, 90, 95),
            _save(format="WEBP", quality=SETTING, method=6),
            _open, _pillow("webp"),
        ),
        Peer(
            "heic", "HEIC", "HEVC intra by x265, 4:2:0", ".heic",
            (1, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60),
            _save(format="HEIF", quality=SETTING),
            _open, _heif_version,
        ),
        Peer(
            "avif", "AVIF", "AV1 intra by aom, 4:4:4, speed 6", ".avif",
            (2, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88),
            _save(format="AVIF", quality=SETTING, speed=6, subsampling="4:4:4", max_threads=1),
            _open, _pillow("avif"),
        ),
        Peer(
            "jxl", "JPEG XL", "effort 7, XYB colour", ".jxl",
            (0, 10, 20, 32, 45, 58, 70, 80, 87, 92, 95),
            _save(format="JXL", quality=SETTING, effort=7, num_threads=0),
            _open, _jxl_version,
        ),
        Peer(
            "vvc", "VVC", "VVC intra by vvenc, preset medium, 4:2:0 10 bit", ".vvc",
            (60, 55, 50, 46, 42, 38, 34, 30, 26, 22, 18),
            vvc.encode, vvc.decode, _vvc_version,
        ),
    )
}  # fmt: skip


def choose_peers(names: list[str]) -> tuple[list[Peer], dict[str, str]]:
    """Return the codecs of `names` that run here, and the reasons why the others don't.

    Raises EvaluationError on an unknown name.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise EvaluationError(f"no codec is called {unknown[0]!r}: choose from {', '.join(PEERS)}")
    here: list[Peer] = []
    absent: dict[str, str] = {}
    for name in dict.fromkeys(names):
        try:
            PEERS[name].version()
            here.append(PEERS[name])
        except PeerMissingError as error:
            absent[name] = str(error)
    return here, absent
