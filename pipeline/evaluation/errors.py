"""The errors of evaluations: bad input, and failures at run time."""

from __future__ import annotations

from pipeline.common.errors import RunError, UsageError


class EvaluationError(UsageError):
    """The user's input can't be evaluated: one sentence says what, where and what to do."""


class MeasurementError(RunError):
    """A measurement failed while it ran, though its input was good."""
