"""The errors of tracking: the user's mistakes, and failures at run time."""

from __future__ import annotations

from pipeline.common.errors import RunError, UsageError


class TrackingError(UsageError):
    """A request that can't be met as given; the message says what, where and what to do."""


class StoreError(RunError):
    """Something outside failed: the tracking server, a download, a damaged artifact."""


class DeletedRunError(TrackingError):
    """The run was deleted in the store; its records wait until it is restored."""
