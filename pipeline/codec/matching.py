"""Whether a stream was made by a model."""

from __future__ import annotations

from typing import Protocol

from pipeline.codec.bitstream import Header
from pipeline.codec.config import Config
from pipeline.codec.errors import CodecError


class Fingerprinted(Protocol):
    """What says which model it is."""

    @property
    def config(self) -> Config:
        """The sizes of the model."""
        ...

    @property
    def fingerprint(self) -> str:
        """The hex digest by which streams name the model."""
        ...


def check_model(model: Fingerprinted, header: Header) -> None:
    """Raise `CodecError` unless `model` is the one that `header` names, and has its rate."""
    if model.fingerprint[:16] != header.fingerprint:
        raise CodecError(
            f"the file was made with the model {header.fingerprint}, and this is "
            f"{model.fingerprint[:16]}; give that model"
        )
    if (header.rate is None) != (model.config.rates is None):
        said = "no rate" if header.rate is None else "a rate"
        raise CodecError(f"the file's header makes no sense: it has {said}, unlike its model")
    model.config.check_rate(header.rate)
