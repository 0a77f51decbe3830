"""What an `--augment` file asks for, checked before work starts. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shards.errors import ShardsError

FORMATS = ("png", "webp")
# Our own operations, each with its parameters: name -> (allowed, required). `STEPS` does them.
OWN = {
    "Resize": ({"shorter"}, {"shorter"}),
    "RandomDownscale": ({"scale", "min_side"}, {"scale"}),
    "RandomCrop": ({"size", "count"}, {"size"}),
}


@dataclass(frozen=True)
class Operation:
    """One operation: its name and parameters."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """Operations in order, and the lossless format that the results are written in."""

    operations: tuple[Operation, ...]
    format: str = "png"

    @property
    def crops(self) -> int:
        """How many samples one picture gives."""
        product = 1
        for one in self.operations:
            if one.name == "RandomCrop":
                product *= int(one.parameters.get("count", 1))
        return product

    def bytes_per_picture(self, size: int) -> int:
        """Return about how many bytes come of a picture of `size` bytes, to cut shards by."""
        cuts = [one.parameters["size"] for one in self.operations if one.name == "RandomCrop"]
        return self.crops * cuts[-1] ** 2 * 2 if cuts else 6 * size

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return {
            "format": self.format,
            "operations": [{one.name: one.parameters} for one in self.operations],
        }

    @classmethod
    def from_dict(cls, given: Any, where: str = "augmentation") -> Spec:
        """Return the specification that `given` describes.

        Raises:
            ShardsError: all its mistakes in one sentence.
        """
        if not isinstance(given, dict) or not isinstance(given.get("operations"), list):
            raise ShardsError(f"{where} must have a list `operations` of one operation a line")
        mistakes = [f"unknown key {key!r}" for key in given if key not in ("format", "operations")]
        form = given.get("format", "png")
        if form not in FORMATS:
            mistakes.append(f"format is {form!r}, not one of {', '.join(FORMATS)}")
        operations = []
        for number, one in enumerate(given["operations"], 1):
            if not isinstance(one, dict) or len(one) != 1:
                mistakes.append(f"operation {number} is not of the form NAME: {{parameters}}")
                continue
            ((name, parameters),) = one.items()
            operation = Operation(str(name), dict(parameters or {}))
            mistakes += [f"operation {number}, {name}: {what}" for what in _mistakes(operation)]
            operations.append(operation)
        if mistakes:
            raise ShardsError(f"{where}: {'; '.join(mistakes)}")
        return cls(tuple(operations), form)


def read_spec(path: str | Path) -> Spec:
    """Return the specification in a YAML file; raises ShardsError."""
    try:
        given = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ShardsError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        words = " ".join(str(error).split())
        raise ShardsError(f"{path} is not YAML: {words}") from error
    return Spec.from_dict(given, str(path))


def _mistakes(operation: Operation) -> list[str]:
    """Return what is wrong with an operation of our own; Kornia's are tried when it is imported."""
    if operation.name not in OWN:
        return []
    allowed, required = OWN[operation.name]
    given = operation.parameters
    found = [f"unknown parameter {key!r}" for key in given if key not in allowed]
    found += [f"parameter {key!r} is missing" for key in sorted(required - given.keys())]
    for key in ("shorter", "size", "count", "min_side"):
        if key in given and not (isinstance(given[key], int) and given[key] > 0):
            found.append(f"{key} must be a whole number above 0")
    if "scale" in given and not _is_range(given["scale"]):
        found.append("scale must be [LOW, HIGH] with 0 < LOW <= HIGH <= 1")
    return found


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2
    return (
        numbers
        and all(isinstance(one, int | float) for one in value)
        and (0 < value[0] <= value[1] <= 1)
    )
