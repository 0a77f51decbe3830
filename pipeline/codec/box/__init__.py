"""The codec that comes with the package: one model for all rates (docs/model-card.md)."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
# The name by which commands and recipes choose it wherever they take a MODEL.
NAME = "box"


def box_model() -> Path:
    """Return the model file that comes with the package."""
    return FOLDER / "small.safetensors"


def is_meant(model: str | Path) -> bool:
    """Tell whether `model` names the packaged codec: `box`, unless a model has that path."""
    if str(model) != NAME:
        return False
    return not Path(NAME).is_file() and not (Path(NAME) / "model.safetensors").is_file()
