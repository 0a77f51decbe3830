"""From a run's reference (`pipeline.common.references`) to the run in the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.documents import parse_object
from pipeline.common.references import by_key, id_of, key_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# The tag by which a run is found before anybody knows its id.
KEY_TAG = "cca.key"
ACTIVE = "active"
# Tags that MLflow gives a run by itself.
MLFLOWS = "mlflow."
NOT_DELIVERED = (
    "its run is not in {store}: `pipeline deliver` sends records that wait in the run's folder"
)


def resolved(client: MlflowClient, reference: str | None) -> str | None:
    """Return the id of the run that `reference` means; an id is returned as it is.

    None: there is no reference, it is none, or the store has no run of its key (yet). Raises what
    MLflow raises.
    """
    key = key_of(reference)
    if key is None:
        return id_of(reference)
    # Like an id, a key finds a run that somebody has deleted; an empty one tells nothing.
    found = [run for run in _runs_of(client, key) if _is_active(run) or _has_records(run)]
    return str(found[0].info.run_id) if found else None


def active_run(client: MlflowClient, key: str) -> Run | None:
    """Return the run of `key` that is not deleted; None where the store has none."""
    return next(filter(_is_active, _runs_of(client, key)), None)


def make_run(client: MlflowClient, experiment: str, key: str, name: str) -> Run:
    """Make the run of `key`, or return the one that another process made in the same moment.

    A request that a proxy, or MLflow's own client, repeated makes several runs. Only one stays.
    """
    now = time.time_ns() // 1_000_000
    made = client.create_run(experiment, start_time=now, tags={KEY_TAG: key}, run_name=name)
    first, *others = list(filter(_is_active, _runs_of(client, key))) or [made]
    for run in others:
        if run.info.start_time == now and not _has_records(run):
            client.delete_run(run.info.run_id)
    return first


def run_reference(folder: Path) -> str | None:
    """Return the reference of the run that has written `folder`; None where it left none.

    An id goes before a key: the state of its records has one as soon as the store was reached.
    """
    said, state = _said(folder / "run.json"), _said(folder / "tracking" / "state.json")
    told = [said.get("run_id", ""), state.get("run_id", ""), by_key(state.get("key", ""))]
    ids = [found for one in told if (found := id_of(one))]
    keys = [one for one in told if key_of(one)]
    return next(iter(ids + keys), None)


def _said(path: Path) -> dict[str, str]:
    """Return the texts in a JSON file; {} where it can't be read."""
    try:
        content = parse_object(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in content.items() if isinstance(value, str)}


def _runs_of(client: MlflowClient, key: str) -> list[Run]:
    """Return the runs of `key` in all experiments: first those not deleted, and with records.

    Everybody who looks takes the first: of two that were made at once, the earlier.
    """
    from mlflow.entities import ViewType

    found = client.search_runs(
        list(_experiments(client)), f"tags.`{KEY_TAG}` = '{key}'", ViewType.ALL
    )
    return sorted(
        found,
        key=lambda run: (
            not _is_active(run),
            not _has_records(run),
            run.info.start_time,
            run.info.run_id,
        ),
    )


def _experiments(client: MlflowClient) -> Iterator[str]:
    token: str | None = None
    while True:
        page = client.search_experiments(page_token=token)
        yield from (str(one.experiment_id) for one in page)
        token = page.token
        if not token:
            return


def _is_active(run: Run) -> bool:
    return str(run.info.lifecycle_stage) == ACTIVE


def _has_records(run: Run) -> bool:
    """Say whether a run's own records have begun to arrive: it was not only made by its key."""
    tags = run.data.tags
    return bool(run.data.params) or any(t != KEY_TAG and not t.startswith(MLFLOWS) for t in tags)
