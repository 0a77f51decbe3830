"""JSON and YAML that come from outside: read whole, or refused as one kind of error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class DocumentError(ValueError):
    """The text is not valid JSON or YAML, or has another form than is needed."""


def parse(data: bytes | str) -> Any:
    """Return what the JSON `data` says; raises `DocumentError` when it is none.

    Text that is not UTF-8 and arrays nested without an end are no JSON either.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except ValueError as error:
        raise DocumentError(str(error)) from error


def parse_object(data: bytes | str) -> dict[str, Any]:
    """Return the object that the JSON `data` is; raises `DocumentError` when it is none."""
    said = parse(data)
    if not isinstance(said, dict):
        raise DocumentError(f"it must be an object, not {type(said).__name__}")
    return said


@contextmanager
def reading_yaml() -> Iterator[None]:
    """Turn every error of a YAML loader inside the block into `DocumentError`.

    Text that is not UTF-8, impossible values (a month 13) and endless nesting are no YAML either.
    """
    import yaml

    try:
        yield
    except RecursionError:
        raise DocumentError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(" ".join(str(error).split())) from error
