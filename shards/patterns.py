"""Patterns that name several files, as a shell reads them."""

from __future__ import annotations

from braceexpand import braceexpand

from shards.errors import ShardsError


def expand_braces(pattern: str) -> list[str]:
    """Return the names that `{a,b}` and `{000..012}` in `pattern` stand for, in order.

    Raises:
        ShardsError: a brace is opened and not closed, or the other way round.
    """
    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise ShardsError(f"{pattern} has a brace without its other half") from error
