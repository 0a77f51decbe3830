"""The two kinds of errors that every room shares, and what a command makes of an error."""

from __future__ import annotations

import errno

from pipeline.common.printable import LAYOUT, printable

# Exit codes of commands.
USAGE, FAILURE, INTERRUPTED = 2, 1, 130
# Letters of the longest sentence that is said.
LONGEST = 2000
# What no file can be called, wherever it is.
NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)


class UsageError(ValueError):
    """What was asked for cannot be done: one sentence says what is wrong, where, and what to do."""


class RunError(RuntimeError):
    """Something failed at run time (a full disk, a killed worker): running again goes on."""


def explained(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the sentence that `error` deserves; None for a fault of the code.

    The sentence may name what is from outside: nothing in it is obeyed by a terminal.
    """
    told = _told(error)
    return None if told is None else (told[0], _shortened(printable(told[1], LAYOUT)))


def _shortened(words: str) -> str:
    """Return `words`, or where they repeat something endless from outside, their two ends."""
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
    """Return what `error` says: of the system's errors the file and the reason, no number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
