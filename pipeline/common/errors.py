"""The two kinds of errors that every room shares: a user's mistake, and a failure at run time."""

from __future__ import annotations


class UsageError(ValueError):
    """What was asked for cannot be done: one sentence says what is wrong, where, and what to do."""


class RunError(RuntimeError):
    """Something failed at run time (a full disk, a killed worker): running again goes on."""
