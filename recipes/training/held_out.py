"""The held-out pictures of a run: those of a folder, or some of its shards' own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.common.digests import file_sha256
from pipeline.evaluation.errors import EvaluationError
from pipeline.evaluation.metrics import Picture
from pipeline.evaluation.pictures import find_pictures, read_picture
from recipes.config.bundled import shipped
from recipes.config.schema import Run
from recipes.config.settings import BLOCK, Data, RecipeError
from recipes.training.data import cache_of
from shards import ShardsError, ShardsRuntimeError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """A held-out picture: its name, and its file or the bytes of one."""

    name: str
    source: Path | bytes

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the file."""
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        return file_sha256(self.source)

    def read(self) -> Picture:
        """Return the picture, (H, W, 3) uint8; raises `EvaluationError` if it can't be read."""
        if isinstance(self.source, Path):
            return read_picture(self.source)
        from pipeline.common import pictures

        try:
            return pictures.read_coded(self.source)
        except (pictures.PictureError, OSError) as error:
            raise EvaluationError(f"{self.name} is not a picture that can be read: {error}") from (
                error
            )


def held_out(run: Run) -> list[HeldOut]:
    """Return the run's held-out pictures; raises `RecipeError` when there are none."""
    data = run.data
    if data.spared:
        return list(_of_shards(data.model_dump_json()))
    if data.validation is None:
        return []
    place = shipped(Path(data.validation))
    try:
        found = find_pictures(place)
        _check_others(place)
    except (EvaluationError, OSError) as error:
        raise RecipeError(f"data.validation: {error}") from error
    return [HeldOut(path.stem, path) for path in found[: data.validation_pictures]]


@lru_cache(maxsize=64)
def _check_others(place: Path) -> None:
    """Warn of hidden pictures below `place`; raise `EvaluationError` for what may be one later.

    What macOS puts beside a file on other systems' disks (`._NAME`) is none. A link that leads
    nowhere is a disk that is not there for the moment: costs without it would mean something else.
    """
    from pipeline.common import pictures

    others = pictures.find_pictures(place)[1] if place.is_dir() else []
    named = [path for path in others if pictures.is_picture(path.name.lstrip("._"))]
    for path in named:
        if not path.name.startswith("."):
            what = "a broken link" if path.is_symlink() else "no file"
            raise EvaluationError(f"{path} is {what}: make it readable, or take it away")
    if named:
        log.warning("data.validation: left out %s: hidden", ", ".join(map(str, named)))


def digest(pictures: Sequence[HeldOut]) -> str:
    """Return the hex SHA-256 of the files of `pictures`, in order; "" if there are none."""
    if not pictures:
        return ""
    return hashlib.sha256(" ".join(one.digest for one in pictures).encode()).hexdigest()


@lru_cache(maxsize=8)
def _of_shards(settings: str) -> tuple[HeldOut, ...]:
    """Return the pictures that are held out of the shards which `settings`, as JSON, name."""
    data = Data.model_validate_json(settings)
    from shards.reading.decode import BrokenPictureError
    from shards.reading.opening import open_corpora
    from shards.streaming.holding import held_out_pictures

    try:
        corpora, _ = open_corpora(data.corpora, data.split, cache_of(data), data.block or BLOCK)
        try:
            found = held_out_pictures(corpora, data.spared)
            return tuple(HeldOut(key, file) for key, file in found)
        finally:
            for corpus in corpora:
                corpus.close()
    except (ShardsError, ShardsRuntimeError, BrokenPictureError) as error:
        raise RecipeError(f"data.held_out: {error}") from error
