"""Traces a model back, run by run and stage by stage, to the shards and their source."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.documents import parse
from pipeline.common.secrets import without_user
from pipeline.tracking.errors import StoreError
from pipeline.tracking.models import NAMED, RUN, find_version, resolve_model, run_artifact
from pipeline.tracking.registry import PARENT, Version, as_version
from pipeline.tracking.resolving import NOT_DELIVERED, resolved
from pipeline.tracking.store import explained, reading_client, require_store, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MANIFEST = "data/{name}.json"


@dataclass(frozen=True)
class Data:
    """The shards on which a run was trained; `manifest` is theirs, if it was kept."""

    name: str
    digest: str
    source: str
    manifest: dict[str, Any] | None


@dataclass(frozen=True)
class StageRun:
    """One run of a lineage: a stage at a rate."""

    run_id: str
    name: str
    status: str
    started: str
    tags: dict[str, str]
    params: dict[str, str]
    data: tuple[Data, ...]


@dataclass(frozen=True)
class Lineage:
    """The origin of a model, latest run first; `gap` says why it is incomplete."""

    model: str
    version: Version | None
    steps: tuple[StageRun, ...]
    gap: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        version = self.version.to_dict() if self.version else None
        return {**asdict(self), "version": version}


def lineage(model: str) -> Lineage:
    """Return the runs that made `model` (any MODEL), as far as the store has them.

    Raises TrackingError when there is no such model.
    """
    in_store = NAMED.fullmatch(model) or RUN.fullmatch(model)
    where = require_store(model) if in_store else reading_client()
    version = None
    if where is None:
        from pipeline.codec import load_model

        load_model(resolve_model(model))
        return Lineage(model, None, (), f"there is no tracking store {tracking_uri()} yet")
    if named := NAMED.fullmatch(model):
        entry = find_version(where, named["name"], named["version"], named["alias"])
        aliases = where.get_registered_model(entry.name).aliases
        version = as_version(entry, aliases)
        run_id = version.run_id or version.tags.get("run_id", "")
    elif run := RUN.fullmatch(model):
        run_id = run["run"]
    else:
        from pipeline.codec import load_model

        run_id = load_model(resolve_model(model)).info.run_id or ""
    with explained(where.tracking_uri):
        steps, gap = _walk(where, run_id)
    return Lineage(model, version, tuple(steps), gap)


def _walk(where: MlflowClient, reference: str) -> tuple[list[StageRun], str | None]:
    from mlflow.exceptions import MlflowException

    if not reference:
        return [], "it names no run: it was imported, or trained without tracking"
    run_id = resolved(where, reference)
    if run_id is None:
        return [], NOT_DELIVERED.format(store=without_user(where.tracking_uri))
    steps: list[StageRun] = []
    while run_id and run_id not in {step.run_id for step in steps}:
        try:
            run = where.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return steps, f"the run {run_id} is not in {without_user(where.tracking_uri)}"
        steps.append(_step(where, run))
        run_id = run.data.tags.get(PARENT, "")
    return steps, None


def _step(where: MlflowClient, run: Run) -> StageRun:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    return StageRun(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        started=started.isoformat(timespec="seconds"),
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        data=tuple(_data(where, run)),
    )


def _data(where: MlflowClient, run: Run) -> list[Data]:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    data = []
    for item in inputs:
        tags = {tag.key: tag.value for tag in item.tags}
        name = item.dataset.name
        data.append(
            Data(
                name=name,
                digest=tags.get("digest", item.dataset.digest),
                source=parse(item.dataset.source).get("uri", item.dataset.source),
                manifest=_manifest(where, run.info.run_id, MANIFEST.format(name=name)),
            )
        )
    return data


def _manifest(where: MlflowClient, run_id: str, artifact: str) -> dict[str, Any] | None:
    """Return the manifest that the run kept, or None."""
    folder = str(Path(artifact).parent)
    if artifact not in {item.path for item in where.list_artifacts(run_id, folder)}:
        return None
    try:
        content = parse(run_artifact(run_id, artifact).read_bytes())
    except (OSError, ValueError, StoreError):
        return None
    return content if isinstance(content, dict) else None
