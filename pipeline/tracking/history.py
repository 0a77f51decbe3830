"""Reads a run from the store: its settings, its tags, and its metrics over the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.common.secrets import without_user
from pipeline.tracking.errors import TrackingError
from pipeline.tracking.resolving import NOT_DELIVERED, resolved
from pipeline.tracking.store import explained, reading_client, require_store


@dataclass(frozen=True)
class History:
    """A run's settings and tags as text, and (step, value) of its metrics, by their names."""

    params: dict[str, str]
    tags: dict[str, str]
    curves: dict[str, list[tuple[int, float]]]


def history(reference: str, metrics: Sequence[str], *, needed: bool) -> History | None:
    """Read the run `reference` from the store, with those of `metrics` that it has.

    Returns None if there is no store and it is not `needed`. Raises TrackingError when there is no
    such run, StoreError when the store can't be used now.
    """
    where = require_store(f"runs:/{reference}") if needed else reading_client()
    if where is None:
        return None
    with explained(str(where.tracking_uri)):
        run_id = resolved(where, reference)
        if run_id is None:
            raise TrackingError(NOT_DELIVERED.format(store=without_user(where.tracking_uri)))
        run = where.get_run(run_id)
        names = [name for name in metrics if name in run.data.metrics]
        logged = {name: where.get_metric_history(run_id, name) for name in names}
    curves = {
        name: sorted((point.step, point.value) for point in points)
        for name, points in logged.items()
    }
    return History(dict(run.data.params), dict(run.data.tags), curves)
