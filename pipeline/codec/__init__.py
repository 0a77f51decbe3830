"""The models, their entropy coding, their bitstream and their files: all that a decoder needs.

What belongs to one architecture is loaded when it is first asked for here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.codec.config import Config
from pipeline.codec.errors import CodecError, MismatchError
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
    load_config,
    load_model,
    round_to_half,
    save_model,
)

if TYPE_CHECKING:
    from pipeline.codec.architectures.cca import (
        AuxiliaryEntropyModel,
        CCAConfig,
        CCAModel,
        CCAOutput,
        start_as_pyramid,
    )

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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.architectures.cca"), name)
