"""What the store knows of a run: settings, tags, and its metrics over the steps."""

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
    """Return what the store knows of the run `reference`, of those `metrics` that it has.

    None: there is no store, and it is not `needed`. Raises TrackingError when there is no such run,
    StoreError for a store that can't be used now.
    """
    where = require_store(f"runs:/{reference}") if needed else reading_client()
    if where is None:
        return None
    with explained(str(where.tracking_uri)):
        run_id = resolved(where, reference)
        if run_id is None:
            raise TrackingError(NOT_DELIVERED.format(store=without_user(where.tracking_uri)))
        run = where.get_run(run_id)
        there = [metric for metric in metrics if metric in run.data.metrics]
        found = {metric: where.get_metric_history(run_id, metric) for metric in there}
    curves = {
        metric: sorted((one.step, one.value) for one in values) for metric, values in found.items()
    }
    return History(dict(run.data.params), dict(run.data.tags), curves)
