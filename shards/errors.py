"""What can go wrong with shards, in the user's words."""

from __future__ import annotations


class ShardsError(ValueError):
    """What was asked for cannot be done: one sentence says what is wrong, where, and what to do."""


class ShardsRuntimeError(RuntimeError):
    """Something failed at run time (a full disk, a killed worker): running again goes on."""
