"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.evaluation.errors import EvaluationError

# A folder that holds this file is an evaluation's own, and may be replaced by a newer one.
MARK = "results.json"


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name beside `path`, flush it to disk, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes `out`'s place when the block ends without an error."""
    check_folder(out)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    partial = out.with_name(f".{out.name}.{token}.partial")
    partial.mkdir()
    try:
        yield partial
        _swap(partial, out, out.with_name(f".{out.name}.{token}.old"))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, out: Path, old: Path) -> None:
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
