"""The pictures of an evaluation: found, named, read as 8-bit RGB."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.evaluation.errors import EvaluationError
from pipeline.evaluation.metrics import Picture

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif"})


@dataclass(frozen=True)
class Source:
    """A picture of the set: its short unique name, file, size in pixels, digest of its samples."""

    name: str
    path: Path
    width: int
    height: int
    digest: str

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height


def find_pictures(folder: Path) -> list[Path]:
    """Return the picture files below `folder` (or `folder` itself, if a file), sorted by path."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is no folder of pictures: give one that exists")
    files = (path for path in folder.rglob("*") if path.is_file())
    found = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    if not found:
        raise EvaluationError(
            f"{folder} holds no pictures: looked for {', '.join(sorted(SUFFIXES))} in it and below"
        )
    return found


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Open every picture once and return what is known of it; EvaluationError on a bad one."""
    names = _unique_names(paths)
    return [_source(name, path) for name, path in zip(names, paths, strict=True)]


def read_picture(path: Path) -> Picture:
    """Return the picture at `path` as (H, W, 3) uint8.

    16-bit greyscale is cut to its upper 8 bits, transparency dropped, orientation tags ignored:
    what every codec is given and measured against. Raises EvaluationError if it can't be read.
    """
    try:
        with Image.open(path) as image:
            return _rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise EvaluationError(f"{path} is not a picture that can be read: {error}") from error


def _rgb(image: Image.Image) -> Picture:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _source(name: str, path: Path) -> Source:
    picture = read_picture(path)
    height, width = picture.shape[:2]
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    digest.update(np.ascontiguousarray(picture).data)
    return Source(name, path, width, height, digest.hexdigest())


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Return the stems, with as many parent folders as it takes to tell them apart."""
    depth, names = 1, [path.stem for path in paths]
    deepest = max((len(path.parts) for path in paths), default=1)
    while (repeated := {name for name, n in Counter(names).items() if n > 1}) and depth < deepest:
        depth += 1
        for i, path in enumerate(paths):
            if names[i] in repeated:
                names[i] = "_".join((*path.parent.parts[-depth + 1 :], path.name))
    if repeated:
        raise EvaluationError(f"a picture is listed twice: {sorted(repeated)[0]}")
    return names
