"""Finds, names and reads the pictures of an evaluation, as 8-bit RGB."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.common import pictures
from pipeline.evaluation.errors import EvaluationError
from pipeline.evaluation.metrics import Picture


@dataclass(frozen=True)
class EvaluatedPicture:
    """A picture to measure: its unique name, file, size in pixels, and digest of its samples."""

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
    files, _ = pictures.find_pictures(folder)
    if not files:
        endings = ", ".join(f".{ending}" for ending in sorted(pictures.ENDINGS))
        raise EvaluationError(f"{folder} holds no pictures: looked for {endings} in it and below")
    return files


def read_sources(paths: Sequence[Path]) -> list[EvaluatedPicture]:
    """Read and describe every picture once; a bad one raises EvaluationError."""
    names = _unique_names(paths)
    return [_source(name, path) for name, path in zip(names, paths, strict=True)]


def read_picture(path: Path) -> Picture:
    """Return the picture at `path` as (H, W, 3) uint8: the samples that `compress` codes.

    It is upright, without alpha and colour profile. The policy is that of
    `pipeline.common.pictures`. Raises EvaluationError if it can't be read.
    """
    try:
        return pictures.read_coded(path)
    except (pictures.PictureError, OSError) as error:
        raise EvaluationError(f"{path} is not a picture that can be read: {error}") from error


def _source(name: str, path: Path) -> EvaluatedPicture:
    picture = read_picture(path)
    height, width = picture.shape[:2]
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    digest.update(np.ascontiguousarray(picture).data)
    return EvaluatedPicture(name, path, width, height, digest.hexdigest())


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
