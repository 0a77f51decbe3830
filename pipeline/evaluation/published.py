"""Published rate-distortion points, for the only set with known ones: Kodak's 24 pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from pipeline.common.documents import parse
from pipeline.evaluation.bdrate import RDCurve
from pipeline.evaluation.pictures import EvaluatedPicture


def published_curves() -> dict[str, RDCurve]:
    """Return codec -> mean bpp and RGB PSNR over Kodak as published (not measured here)."""
    codecs = _table("kodak-published.json")["codecs"]
    return {name: RDCurve(points["bpp"], points["psnr"]) for name, points in codecs.items()}


def published_source() -> str:
    """Return the source of the published points, as text for readers."""
    return str(_table("kodak-published.json")["source"])


def kodak_names(sources: Sequence[EvaluatedPicture]) -> dict[str, EvaluatedPicture]:
    """Return `kodimNN` -> picture for Kodak's pictures in the set, recognised by their samples."""
    names = {digest: name for name, digest in _table("kodak-digests.json").items()}
    return {names[s.digest]: s for s in sources if s.digest in names}


def is_kodak(sources: Sequence[EvaluatedPicture]) -> bool:
    """Tell whether the set is all of Kodak and nothing else, as published means need it."""
    return len(sources) == len(kodak_names(sources)) == len(_table("kodak-digests.json"))


@cache
def _table(name: str) -> dict[str, Any]:
    text = resources.files("pipeline.evaluation").joinpath("data", name).read_text()
    table: dict[str, Any] = parse(text)
    return table
