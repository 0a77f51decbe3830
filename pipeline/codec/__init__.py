"""The models, their entropy coding, their bitstream and their files: all that a decoder needs.

Names are loaded when they are first asked for here: reading a stream's header needs no torch.
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


# Where each name is defined.
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
