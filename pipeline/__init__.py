"""Train, evaluate, track and use CCA image codecs; `load_model` opens any MODEL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.codec import Model

__all__ = ["load_model"]


def load_model(model: str | Path = "box", device: str = "cpu") -> Model:
    """Load a codec: file, folder, `runs:/ID`, `models:/NAME/VERSION` or `models:/NAME@ALIAS`.

    Without a name, or with `box`, it is the model that comes with the package. Returns the model in
    evaluation mode on `device`. Raises `ValueError` if there is no such model or device, or if the
    file is not a model of this project.
    """
    from pipeline import codec
    from pipeline.codec import box

    if box.is_meant(model):
        return codec.load_model(box.box_model(), device=device)
    from pipeline.tracking import resolve_model

    return codec.load_model(resolve_model(model), device=device)
