"""The two kinds of errors that every room shares, and what a command makes of an error."""

from __future__ import annotations

import errno

from pipeline.common.printable import LAYOUT, printable

# Exit codes of commands.
USAGE, FAILURE, INTERRUPTED = 2, 1, 130
# The length of the longest message, in characters.
LONGEST = 2000
# What no file can be called, wherever it is.
NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)


class UsageError(ValueError):
    """What was asked for cannot be done: one sentence says what is wrong, where, and what to do."""


class RunError(RuntimeError):
    """Something failed at run time (a full disk, a killed worker): running again goes on."""


def explained(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the message for `error`, or None if it is a fault of the code.

    Text from outside that the message quotes is written so that no terminal obeys it.
    """
    told = _told(error)
    return None if told is None else (told[0], _shortened(printable(told[1], LAYOUT)))


def _shortened(words: str) -> str:
    """Return `words`, cut in the middle where they are too long."""
    if len(words) <= LONGEST:
        return words
    return f"{words[: LONGEST * 2 // 3]} ... {words[-LONGEST // 4 :]}"


def _told(error: BaseException) -> tuple[int, str] | None:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; finished work is kept, and the same command continues"
    if isinstance(error, UsageError):
        return USAGE, str(error)
    if isinstance(error, RunError):
        return FAILURE, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        words = str(error).partition(". ")[0]
        return FAILURE, f"out of memory: {words or 'this machine has no more'}"
    if isinstance(error, OSError):
        return USAGE if error.errno in NO_NAMES else FAILURE, in_words(error)
    return None


def in_words(error: Exception) -> str:
    """Return the message of `error`; for an error of the system, the file and reason, no number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
