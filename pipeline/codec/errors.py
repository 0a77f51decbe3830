"""The codec's errors: bad input that a user can correct, and failures at run time."""

from __future__ import annotations

from pipeline.common.errors import RunError, UsageError

MISMATCH = (
    "the file decodes to other symbols than were encoded: the arithmetic here differs from the "
    "encoder's; the picture would be broken, so none is given"
)


class CodecError(UsageError):
    """An input that the codec refuses; the message says what is wrong, where, and what to do."""


class MismatchError(RunError):
    """A whole stream that this machine or model decodes to other symbols than were encoded."""
