"""Turns each kind of record into requests to MLflow; every request may be repeated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from pipeline.common.references import key_of
from pipeline.common.secrets import without_user
from pipeline.tracking.errors import DeletedRunError, TrackingError
from pipeline.tracking.progress import Pace
from pipeline.tracking.records import Record
from pipeline.tracking.resolving import active_run, make_run, resolved
from pipeline.tracking.spool import Spool, State
from pipeline.tracking.store import experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_A_REQUEST = 1000
TEXTS_A_REQUEST = 100
LONGEST_TAG = 5000
LONGEST_PARAM = 6000
LONGEST_DIGEST = 36
T = TypeVar("T")


def find_run(client: MlflowClient, state: State) -> str:
    """Return the id of the state's run: the known run, one created before, or a new one.

    Raises TrackingError when the known run is not in this store, or was deleted there.
    """
    if state.run_id:
        _check_known(client, state)
        return state.run_id
    where = experiment_id(client, state.experiment)
    # An earlier attempt may have created it, and the answer was lost. A run that builds on it may
    # have created it, too, without knowing its name.
    run = active_run(client, state.key) or make_run(client, where, state.key, state.run_name)
    if run.info.run_name == state.key:
        client.update_run(run.info.run_id, name=state.run_name)
    return str(run.info.run_id)


def _check_known(client: MlflowClient, state: State) -> None:
    from mlflow.exceptions import MlflowException

    try:
        refuse_deleted(client, state.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackingError(
            f"the run {state.run_id} is not in {without_user(client.tracking_uri)}: set "
            "MLFLOW_TRACKING_URI to the store that has it, or, to begin another one, delete "
            "`tracking` and `run.json` in the run's folder"
        ) from error


def refuse_deleted(client: MlflowClient, run_id: str) -> None:
    """Raise DeletedRunError if somebody has deleted the run, for example in MLflow's pages."""
    info = client.get_run(run_id).info
    if info.lifecycle_stage == "deleted":
        restore = f"mlflow runs restore --run-id {run_id}"
        if client.get_experiment(info.experiment_id).lifecycle_stage == "deleted":
            # Its runs were deleted with it, and are restored with it.
            restore = f"mlflow experiments restore --experiment-id {info.experiment_id}"
        raise DeletedRunError(
            f"the run {run_id} was deleted in {without_user(client.tracking_uri)}: restore it"
            f" (`{restore}`), or, to begin another one, delete `tracking` and `run.json` in the"
            " run's folder"
        )


class Sender:
    """Sends the records of one run."""

    def __init__(self, client: MlflowClient, spool: Spool, run_id: str) -> None:
        """The run `run_id` must exist; `spool` holds its staged files."""
        self._client = client
        self._spool = spool
        self._run_id = run_id
        self._pace = Pace()

    def refuse_deleted(self) -> None:
        """Raise DeletedRunError if the run was deleted meanwhile."""
        refuse_deleted(self._client, self._run_id)

    def place_of_files(self) -> str:
        """Return where the run's files go, without credentials."""
        return without_user(str(self._client.get_run(self._run_id).info.artifact_uri))

    def send(self, kind: str, records: Sequence[Record]) -> None:
        """Send records of one kind; all kinds but metrics come one at a time."""
        if kind == "metrics":
            self._metrics(records)
            return
        record = records[0]
        actions: dict[str, Callable[[Record], None]] = {
            "begin": self._begin,
            "tags": lambda r: self._tags(r["tags"]),
            "file": self._file,
            "image": self._image,
            "dataset": self._dataset,
            "end": self._end,
        }
        actions[kind](record)

    def _metrics(self, records: Sequence[Record]) -> None:
        """Send metrics, and the progress of the run with the last of them."""
        from mlflow.entities import Metric, RunTag

        metrics = [
            Metric(name, value, record["time"], record["step"])
            for record in records
            for name, value in record["values"].items()
        ]
        tags = [RunTag(key, value) for key, value in self._pace.tags(records).items()]
        *parts, last = _parts(metrics, METRICS_A_REQUEST - len(tags))
        for part in parts:
            self._client.log_batch(self._run_id, metrics=part)
        self._client.log_batch(self._run_id, metrics=last, tags=tags)

    def _begin(self, record: Record) -> None:
        """Mark the run as running, and add settings; changed ones go into a tag."""
        from mlflow.entities import Param

        run = self._client.get_run(self._run_id)
        if run.info.status != "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")
        known = run.data.params
        params = {key: value[:LONGEST_PARAM] for key, value in record["params"].items()}
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for part in _parts(new, TEXTS_A_REQUEST):
            self._client.log_batch(self._run_id, params=part)
        changed = {k: v for k, v in params.items() if known.get(k, v) != v}
        note = {"changed_settings": json.dumps(changed)} if changed else {}
        self._tags({**record["tags"], **note})

    def _tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        told = {key: self._told(str(value)) for key, value in tags.items()}
        entities = [RunTag(key, value[:LONGEST_TAG]) for key, value in told.items()]
        for part in _parts(entities, TEXTS_A_REQUEST):
            self._client.log_batch(self._run_id, tags=part)

    def _told(self, value: str) -> str:
        """Return a tag's value; of a reference by key, the id of the run that it means.

        A run whose own records have not arrived yet is made here, for them to find it.
        """
        key = key_of(value)
        if key is None:
            return value
        known = resolved(self._client, value)
        if known is None:
            beside = self._client.get_run(self._run_id).info.experiment_id
            known = str(make_run(self._client, beside, key, key).info.run_id)
        return known

    def _file(self, record: Record) -> None:
        path = self._spool.staged(record["staged"])
        self._client.log_artifact(self._run_id, str(path), record["folder"] or None)

    def _image(self, record: Record) -> None:
        """Send a picture unless it arrived before: MLflow gives each upload a new name."""
        from mlflow import Image

        name = record["name"].replace("/", "~")
        start = f"images/{name}+step+{record['step']}+timestamp+{record['time']}+"
        stored = self._client.list_artifacts(self._run_id, "images")
        if any(a.path.startswith(start) and a.path.endswith(".webp") for a in stored):
            return
        path = str(self._spool.staged(record["staged"]))
        picture = Image(path)
        self._client.log_image(
            self._run_id,
            picture,
            key=record["name"],
            step=record["step"],
            timestamp=record["time"],
            synchronous=True,
        )

    def _end(self, record: Record) -> None:
        self._client.set_terminated(self._run_id, record["status"], record["time"])

    def _dataset(self, record: Record) -> None:
        """Add a dataset input; MLflow's digest has 36 characters at most, the tag has all of it."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=record["name"],
            digest=record["digest"][:LONGEST_DIGEST],
            source_type="local" if "://" not in record["source"] else "uri",
            source=json.dumps({"uri": without_user(record["source"])}),
        )
        tags = [
            InputTag("mlflow.data.context", "training"),
            InputTag("digest", record["digest"]),
        ]
        self._client.log_inputs(self._run_id, [DatasetInput(dataset, tags)])


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
