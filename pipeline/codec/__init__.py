"""Models, entropy coding, the bitstream and model files: everything that a decoder needs.

Names are imported on first access, so that reading a stream's header does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.codec.errors import CodecError, MismatchError

if TYPE_CHECKING:
    from pipeline.codec.architectures.cca import (
        AuxiliaryEntropyModel,
        CCAConfig,
        CCAModel,
        CCAOutput,
        start_as_pyramid,
    )
    from pipeline.codec.config import Config
    from pipeline.codec.info import ModelInfo
    from pipeline.codec.model import (
        AuxiliaryModel,
        AuxiliaryOutput,
        CodecOutput,
        HyperOutput,
        Model,
        Noise,
    )
    from pipeline.codec.storage import (
        load_auxiliary,
        load_model,
        round_to_half,
        save_model,
    )
    from pipeline.codec.stored import load_config

__all__ = [
    "AuxiliaryEntropyModel",
    "AuxiliaryModel",
    "AuxiliaryOutput",
    "CCAConfig",
    "CCAModel",
    "CCAOutput",
    "CodecError",
    "CodecOutput",
    "Config",
    "HyperOutput",
    "MismatchError",
    "Model",
    "ModelInfo",
    "Noise",
    "load_auxiliary",
    "load_config",
    "load_model",
    "round_to_half",
    "save_model",
    "start_as_pyramid",
]


# The module that defines each name.
_HOMES = {
    "config": ("Config",),
    "info": ("ModelInfo",),
    "model": (
        "AuxiliaryModel", "AuxiliaryOutput", "CodecOutput", "HyperOutput", "Model", "Noise",
    ),
    "storage": ("load_auxiliary", "load_model", "round_to_half", "save_model"),
    "stored": ("load_config",),
    "architectures.cca": (
        "AuxiliaryEntropyModel", "CCAConfig", "CCAModel", "CCAOutput", "start_as_pyramid",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
