"""What can go wrong in an evaluation."""

from __future__ import annotations


class EvaluationError(ValueError):
    """The user's input can't be evaluated: one sentence says what, where and what to do."""


class MeasurementError(RuntimeError):
    """A measurement failed while it ran, though its input was good."""
