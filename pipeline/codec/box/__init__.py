"""The codec that comes with the package: one model for all rates (docs/model-card.md)."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def box_model() -> Path:
    """Return the model file that comes with the package."""
    return FOLDER / "small.safetensors"
