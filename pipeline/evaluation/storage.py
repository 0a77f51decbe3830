"""Checks the folder that an evaluation's report goes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.common.targets import check_writable
from pipeline.evaluation.errors import EvaluationError

# A folder that holds this file is an evaluation's own, and may be replaced by a newer one.
MARK = "results.json"
STREAMS = "streams"
OWN = {MARK, "results.csv", "rd-curve.png", "rd-curve.svg", "report.html"}


def check_folder(out: Path, sources: Iterable[Path] = (), force: bool = False) -> None:
    """Raise EvaluationError unless `out` is free, empty or an earlier evaluation's folder.

    An evaluation replaces the whole folder. `force` allows replacing other files in it, but never
    one of `sources`, the pictures and models that are evaluated. Raises TargetError when no folder
    can be made.
    """
    check_writable(out)
    if not out.exists():
        return
    if not out.is_dir():
        raise EvaluationError(f"{out} is a file: give --out a folder")
    place = out.resolve()
    for source in sources:
        if source.resolve().is_relative_to(place):
            raise EvaluationError(f"{out} holds {source}, which is evaluated: give --out another")
    if force:
        return
    if any(out.iterdir()) and not (out / MARK).is_file():
        raise EvaluationError(
            f"{out} holds other things than an evaluation: give --out a new or empty folder"
        )
    for foreign in _foreign(out):
        raise EvaluationError(
            f"{out} holds {foreign.relative_to(out)}, which no evaluation wrote: give --out another"
            " folder, or replace all of it with --force"
        )


def _foreign(out: Path) -> Iterator[Path]:
    """Yield the files in an evaluation's folder that no evaluation writes."""
    for path in sorted(out.iterdir()):
        if path.name == STREAMS and path.is_dir():
            yield from (p for p in path.rglob("*") if p.is_file() and p.suffix != ".cca")
        elif path.name not in OWN:
            yield path
