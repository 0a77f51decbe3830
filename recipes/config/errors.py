"""One sentence for each thing that pydantic finds wrong in a file, a recipe or a profile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sentence(detail: Mapping[str, Any], name: str, nearest: str) -> str:
    """Return one of `ValidationError.errors()` as a sentence about the key `name`.

    `nearest` follows an unknown key: what may have been meant.
    """
    if detail["type"] == "extra_forbidden":
        return f"unknown key {name}{nearest}"
    if detail["type"] == "missing":
        return f"{name} is missing"
    if detail["type"] == "value_error":
        reason = str(detail["msg"]).removeprefix("Value error, ")
        return f"{name}: {reason}" if name else reason
    message = str(detail["msg"])
    return f"{name}: {message[:1].lower()}{message[1:]} (given: {detail['input']!r})"
