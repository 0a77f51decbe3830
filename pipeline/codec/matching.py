"""Checks that a stream was made by a model."""

from __future__ import annotations

from typing import Protocol

from pipeline.codec.bitstream import Header
from pipeline.codec.config import Config
from pipeline.codec.errors import CodecError


class Fingerprinted(Protocol):
    """A model that knows its sizes and its fingerprint."""

    @property
    def config(self) -> Config:
        """The sizes of the model."""
        ...

    @property
    def fingerprint(self) -> str:
        """The hex digest by which streams name the model."""
        ...


def check_model(model: Fingerprinted, header: Header) -> None:
    """Raise `CodecError` unless `header` names `model` and a rate that it has."""
    if model.fingerprint[:16] != header.fingerprint:
        raise CodecError(
            f"the file was made with the model {header.fingerprint}, and this is "
            f"{model.fingerprint[:16]}; give that model"
        )
    if (header.rate is None) != (model.config.rates is None):
        stated = "no rate" if header.rate is None else "a rate"
        raise CodecError(f"the file's header makes no sense: it has {stated}, unlike its model")
    model.config.check_rate(header.rate)
