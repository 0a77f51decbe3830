"""Errors of shards, for users."""

from __future__ import annotations

from pipeline.common.errors import RunError, UsageError


class ShardsError(UsageError):
    """What was asked for cannot be done: one sentence says what is wrong, where, and what to do."""


class ShardsRuntimeError(RunError):
    """Something failed at run time (a full disk, a killed worker): running again goes on."""
