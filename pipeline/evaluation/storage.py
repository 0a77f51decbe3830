"""The folder that an evaluation's report goes to."""

from __future__ import annotations

from pathlib import Path

from pipeline.evaluation.errors import EvaluationError

# A folder that holds this file is an evaluation's own, and may be replaced by a newer one.
MARK = "results.json"


def check_folder(out: Path) -> None:
    """Raise EvaluationError unless `out` is free, empty or an earlier evaluation's folder."""
    if not out.exists():
        return
    if not out.is_dir():
        raise EvaluationError(f"{out} is a file: give --out a folder")
    if any(out.iterdir()) and not (out / MARK).is_file():
        raise EvaluationError(
            f"{out} holds other things than an evaluation: give --out a new or empty folder"
        )
