"""The room's errors: what a user can put right, and what went wrong at run time."""

from __future__ import annotations

from pipeline.common.errors import RunError, UsageError

MISMATCH = (
    "the file decodes to other symbols than were encoded: the arithmetic here differs from the "
    "encoder's; the picture would be broken, so none is given"
)


class CodecError(UsageError):
    """An input that the codec refuses; the message says what is wrong, where, and what to do."""


class MismatchError(RunError):
    """A stream that is whole, but that this machine or model decodes to other symbols."""
