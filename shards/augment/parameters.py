"""Parameters of the operations that are defined here, not by Kornia."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# Filters of a resize: all average what a smaller picture leaves out.
FILTERS = ("bilinear", "bicubic", "lanczos", "area")
# Name -> (parameters allowed, those required, those that version 1 did not have).
OWN: dict[str, tuple[set[str], set[str], set[str]]] = {
    "Resize": ({"shorter", "filter"}, {"shorter"}, {"filter"}),
    "RandomDownscale": (
        {"scale", "min_side", "filter", "mixture"},
        set(),
        {"filter", "mixture"},
    ),
    "RandomCrop": (
        {"size", "count", "detail", "tries"},
        {"size"},
        {"detail", "tries"},
    ),
    "RejectBlocking": ({"over"}, {"over"}, {"over"}),
}


def mistakes_in(name: str, given: Mapping[str, Any], version: int) -> list[str]:
    """Return the mistakes in the parameters of an operation, if it is one of `OWN`.

    Those of Kornia's operations are tried when Kornia is imported.
    """
    if name not in OWN:
        return []
    allowed, required, later = OWN[name]
    if name == "RandomDownscale" and "mixture" not in given:
        required = {"scale"}
    found = [f"unknown parameter {key!r}" for key in given if key not in allowed]
    found += [f"parameter {key!r} is missing" for key in sorted(required - given.keys())]
    for key, (fits, words) in RULES.items():
        if key in given and key in allowed and not fits(given[key]):
            found.append(f"{key} must be {words}")
    if "mixture" in given and "scale" in given:
        found.append("give scale or mixture, not both")
    if version == 1:
        found += [f"{key} needs version 2" for key in sorted(given.keys() & later)]
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2
    return numbers and all(map(_is_number, value)) and 0 < value[0] <= value[1] <= 1


def _is_mixture(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(one, list)
            and len(one) == 3
            and _is_range(one[:2])
            and _is_number(one[2])
            and one[2] > 0
            for one in value
        )
    )


def _is_filter(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(one, str) and one in FILTERS for one in names)


WHOLE = (_is_whole, "a whole number above 0")
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shorter": WHOLE,
    "size": WHOLE,
    "count": WHOLE,
    "min_side": WHOLE,
    "tries": WHOLE,
    "detail": (_is_number, "a number, at least 0"),
    "over": (_is_number, "a number, at least 0"),
    "scale": (_is_range, "[LOW, HIGH] with 0 < LOW <= HIGH <= 1"),
    "mixture": (_is_mixture, "a list of [LOW, HIGH, WEIGHT] with 0 < LOW <= HIGH <= 1"),
    "filter": (_is_filter, f"one of {', '.join(FILTERS)}, or a list of them"),
}
