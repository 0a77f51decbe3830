"""The CCA model, its entropy coding, its bitstream and its files: all that a decoder needs."""

from __future__ import annotations

from pipeline.codec.architectures.cca.auxiliary import AuxiliaryEntropyModel, AuxiliaryOutput
from pipeline.codec.architectures.cca.config import CCAConfig
from pipeline.codec.architectures.cca.context import HyperOutput
from pipeline.codec.architectures.cca.model import CCAModel, CCAOutput, Noise
from pipeline.codec.architectures.cca.start import start_as_pyramid
from pipeline.codec.errors import CodecError, MismatchError
from pipeline.codec.storage import load_auxiliary, load_config, load_model, save_model

__all__ = [
    "AuxiliaryEntropyModel",
    "AuxiliaryOutput",
    "CCAConfig",
    "CCAModel",
    "CCAOutput",
    "CodecError",
    "HyperOutput",
    "MismatchError",
    "Noise",
    "load_auxiliary",
    "load_config",
    "load_model",
    "save_model",
    "start_as_pyramid",
]
