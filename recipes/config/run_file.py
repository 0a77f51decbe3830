"""Reads `run.json` in the folder of a run, and checks its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.common.documents import parse
from recipes.config.settings import RecipeError

RUN_FILE = "run.json"
MODEL_FILE = "model.safetensors"


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _text(value: object) -> bool:
    return value is None or isinstance(value, str)


def _failure(value: object) -> bool:
    return isinstance(value, Mapping) and _count(value.get("step"))


# Checks of the keys that are read. Other keys are for people, and for later versions.
_CHECKS: dict[str, Callable[[object], bool]] = {
    "done": lambda value: isinstance(value, bool),
    "step": _count,
    "steps": _count,
    "run_id": _text,
    "parent_fingerprint": _text,
    "failed": _failure,
}


def parsed(data: bytes) -> dict[str, Any]:
    """Return the contents of a `run.json`; raises `ValueError` for values that no version wrote."""
    said = parse(data)
    if not isinstance(said, dict):
        raise ValueError("it must hold an object")
    odd = [key for key, fits in _CHECKS.items() if key in said and not fits(said[key])]
    if odd:
        raise ValueError(f"{odd[0]} is {str(said[odd[0]])[:40]}")
    return said


def read_run_file(folder: Path) -> dict[str, Any]:
    """Return the contents of `run.json` in the folder of a run; {} where there is none.

    Raises `RecipeError` when it can't be read: an unreadable file does not count as absent.
    """
    path = folder / RUN_FILE
    try:
        return parsed(path.read_bytes())
    except FileNotFoundError:
        if not path.is_symlink():
            return {}
        raise RecipeError(f"{path} is a link that leads nowhere") from None
    except NotADirectoryError:
        return {}
    except OSError as error:
        raise RecipeError(
            f"{path} can't be read ({error.strerror or error}): try again when it can, or give"
            " another out"
        ) from error
    except ValueError as error:
        raise RecipeError(
            f"{path} is damaged: {error}. Remove it to go on from the newest checkpoint"
        ) from error
