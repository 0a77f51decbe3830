"""JSON and YAML that come from outside: read whole, or refused as one kind of error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Levels of lists and mappings in each other: libyaml overflows its stack at some ten thousands.
DEEPEST = 200
TOO_DEEP = "it is nested too deeply"


class DocumentError(ValueError):
    """The text is not valid JSON or YAML, or has another form than is needed."""


def parse(data: bytes | str) -> Any:
    """Return what the JSON `data` says; raises `DocumentError` when it is none.

    Text that is not UTF-8 and arrays nested without an end are no JSON either.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise DocumentError(TOO_DEEP) from None
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
        raise DocumentError(TOO_DEEP) from None
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(" ".join(str(error).split())) from error


def check_depth(text: str) -> None:
    """Raise `DocumentError` if the YAML `text` nests deeper than `DEEPEST` levels.

    Call it before a loader that is written in C: one that meets endless nesting kills the process.
    Raises `yaml.YAMLError` if the text is not YAML.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise DocumentError(TOO_DEEP)
