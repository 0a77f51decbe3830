"""The room's errors: what a user can put right, and what went wrong at run time."""

from __future__ import annotations


class CodecError(ValueError):
    """An input that the codec refuses; the message says what is wrong, where, and what to do."""


class MismatchError(RuntimeError):
    """A stream that is whole, but that this machine or model decodes to other symbols."""
