"""The contents of an `--augment` file, checked before work starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.documents import DocumentError, reading_yaml
from shards.augment.parameters import mistakes_in
from shards.errors import ShardsError

# How operations are defined. Version 1 resized by a Gaussian blur and bilinear interpolation of
# floats (Kornia's); version 2 resizes 8-bit samples as Pillow does, in whole numbers.
VERSION = 2
# Encoders by format, the first one taken unless `encode` names another. All are lossless.
ENCODERS = {
    "png": ("libdeflate", "zlib", "small"),
    "webp": ("fast", "small"),
    "jxl": ("fast", "small"),
}
FORMATS = tuple(ENCODERS)
COLOURS = ("srgb", "kept")
KEYS = ("format", "operations", "version", "encode", "colours")
# What stored options mean that lack a key: they are older than it.
BEFORE = {"version": 1, "encode": "small", "colours": "srgb"}


@dataclass(frozen=True)
class Operation:
    """One operation: its name and parameters."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """Operations in order, and how the results are written.

    Attributes:
        operations: the operations on each picture, in order.
        format: "png", "webp" or "jxl"; all are written without loss.
        version: of the operations' definitions.
        encode: one of `ENCODERS[format]`; "" stands for the quickest one on this machine.
        colours: "srgb" converts to the colours that a viewer shows, "kept" keeps the samples and
            writes the colour profile into the file.
    """

    operations: tuple[Operation, ...]
    format: str = "png"
    version: int = VERSION
    encode: str = ""
    colours: str = "srgb"

    @property
    def encoder(self) -> str:
        """The encoder: the one that is named, or the quickest one here."""
        return self.encode or default_encoder(self.format)

    @property
    def crops(self) -> int:
        """The number of samples that one picture gives."""
        product = 1
        for one in self.operations:
            if one.name == "RandomCrop":
                product *= int(one.parameters.get("count", 1))
        return product

    @property
    def crops_area(self) -> int:
        """The pixels of all samples of one picture together; 0: none of them is a crop."""
        cuts = [one.parameters["size"] for one in self.operations if one.name == "RandomCrop"]
        return self.crops * int(cuts[-1]) ** 2 if cuts else 0

    def bytes_per_picture(self, size: int) -> int:
        """Return about how many bytes come of a picture of `size` bytes, to cut shards by."""
        return 2 * self.crops_area or 6 * size

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return {
            "format": self.format,
            "operations": [{one.name: one.parameters} for one in self.operations],
            "version": self.version,
            "encode": self.encoder,
            "colours": self.colours,
        }

    @classmethod
    def from_dict(cls, given: Any, where: str = "augmentation") -> Spec:
        """Return the specification that `given` describes, with today's defaults.

        Raises:
            ShardsError: all its mistakes in one sentence.
        """
        if not isinstance(given, dict) or not isinstance(given.get("operations"), list):
            raise ShardsError(f"{where} must have a list `operations` of one operation a line")
        mistakes = [f"unknown key {key!r}" for key in given if key not in KEYS]
        version = given.get("version", VERSION)
        if version not in range(1, VERSION + 1) or isinstance(version, bool):
            mistakes.append(f"version is {version!r}, not one of 1 to {VERSION}")
            version = VERSION
        mistakes += _form_mistakes(given)
        operations = []
        for number, one in enumerate(given["operations"], 1):
            if not isinstance(one, dict) or len(one) != 1:
                mistakes.append(f"operation {number} is not of the form NAME: {{parameters}}")
                continue
            ((name, parameters),) = one.items()
            if not isinstance(parameters, dict | None):
                mistakes.append(f"operation {number}, {name}: parameters must be {{NAME: VALUE}}")
                continue
            operation = Operation(str(name), dict(parameters or {}))
            found = mistakes_in(operation.name, operation.parameters, version)
            mistakes += [f"operation {number}, {name}: {what}" for what in found]
            operations.append(operation)
        if mistakes:
            raise ShardsError(f"{where}: {'; '.join(mistakes)}")
        more = {key: given[key] for key in ("format", "encode", "colours") if key in given}
        if version == 1:
            more.setdefault("encode", BEFORE["encode"])
        return cls(tuple(operations), version=version, **more)


def _form_mistakes(given: Mapping[str, Any]) -> list[str]:
    """Return the mistakes in the settings for writing results."""
    form, colours = given.get("format", "png"), given.get("colours", "srgb")
    if form not in FORMATS:
        return [f"format is {form!r}, not one of {', '.join(FORMATS)}"]
    found = []
    if "encode" in given and given["encode"] not in ENCODERS[form]:
        found.append(f"encode is {given['encode']!r}: {form} has {', '.join(ENCODERS[form])}")
    if colours not in COLOURS:
        found.append(f"colours is {colours!r}, not one of {', '.join(COLOURS)}")
    return found


def default_encoder(form: str) -> str:
    """Return the quickest encoder of the format `form` that is installed here."""
    if form == "png" and find_spec("deflate") is None:
        return "zlib"
    return ENCODERS[form][0]


def completed(given: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the option `augment` with what it leaves open.

    What work is to go on that was begun with the option `before` leaves that open too, or names
    it; otherwise it is as today.
    """
    given = dict(given)
    if before is None:
        return given | Spec.from_dict({key: given[key] for key in KEYS if key in given}).to_dict()
    for key, meaning in BEFORE.items():
        if key not in given and key in before:
            given[key] = before[key]
        elif given.get(key) == meaning and key not in before:
            del given[key]
    return given


def read_spec(path: str | Path) -> Spec:
    """Return the specification in a YAML file; raises ShardsError."""
    return Spec.from_dict(read_dict(path), str(path))


def read_dict(path: str | Path) -> Any:
    """Return the contents of a YAML file; raises ShardsError."""
    try:
        with reading_yaml():
            return yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ShardsError(f"cannot read {path}: {error.strerror or error}") from error
    except DocumentError as error:
        raise ShardsError(f"{path} is not YAML: {error}") from error
