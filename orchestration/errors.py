"""Errors between a recipe and a scheduler."""

from __future__ import annotations

from pipeline.common.errors import RunError, UsageError


class OrchestrationError(UsageError):
    """A profile, plan or job that can't be used as given; the message says what to do."""


class EngineError(RunError):
    """The scheduler refused or could not be reached; the message holds its own words."""


class UnansweredError(EngineError):
    """A scheduler's command that failed; it may succeed when the controller is back."""


class HalfSubmittedError(EngineError):
    """Some of a plan's jobs may be with the scheduler; `cancel` and `retry` work on them."""
