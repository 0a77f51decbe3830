"""The codec that comes with the package: one model for all rates (docs/model-card.md)."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
# By which commands and recipes name it, where any MODEL may stand.
NAME = "box"


def box_model() -> Path:
    """Return the model file that comes with the package."""
    return FOLDER / "small.safetensors"


def is_meant(model: str | Path) -> bool:
    """Whether the word `model` names the package's own: `box`, unless a model lies there."""
    if str(model) != NAME:
        return False
    return not Path(NAME).is_file() and not (Path(NAME) / "model.safetensors").is_file()
