"""Versions of codecs in MLflow's registry, each with its origin and its measurements."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.digests import file_sha256
from pipeline.tracking.errors import TrackingError
from pipeline.tracking.measured import RANGE, TO, measured
from pipeline.tracking.models import find_version, resolve_model
from pipeline.tracking.resolving import resolved
from pipeline.tracking.store import (
    client,
    experiment_id,
    explained,
    reading_client,
    require_store,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from pipeline.codec import Model

# The fields of a checkpoint's info that become tags of its version.
INFO = (
    "stage", "rate_weight", "distortion", "step", "recipe_digest", "data_digest", "git_commit",
    "run_id", "parent", "source",
)  # fmt: skip
PARENT = "mlflow.parentRunId"
NAME = re.compile(r"[\w\-. ]{1,250}")
UNTRACKED = "untracked models"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """A registered version: rates in bits per pixel, PSNR in dB, BD-rates in percent.

    A value that was not measured or recorded is None (or empty).
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    fingerprint: str
    run_id: str | None
    stage: str | None
    rate_weight: float | None
    distortion: str | None
    step: int | None
    bpp: float | None
    psnr: float | None
    ms_ssim: float | None
    measured_on: str | None
    bd_rate: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    # For a codec with several rates: their weights, and the ranges of the measured metrics.
    rate_weights: tuple[float, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """The name that every command takes."""
        return f"models:/{self.name}/{self.version}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"uri": self.uri, **asdict(self)}


def register_model(
    source: str,
    name: str,
    alias: str | None = None,
    metrics: Mapping[str, float | str] | None = None,
) -> Version:
    """Make the codec `source` (a MODEL or a run's id) the next version of the model `name`.

    If the codec is already a version of `name`, only its tags and alias are updated. `metrics` are
    the results of an evaluation (`measurements`); `alias` moves to the version.
    Raises TrackingError when there is no such codec, or for a name that can't be used.
    """
    from pipeline.codec import load_model
    from pipeline.tracking.flavour import check_servable

    _check_name(name)
    where = client()
    path = resolve_model(_as_uri(source))
    model = load_model(path)
    check_servable(model.config.architecture)
    with explained(where.tracking_uri):
        origin = resolved(where, model.info.run_id)
        run_id = _known_run(where, origin or "")
        tags = _training(where, run_id) | _tags(model, origin, metrics or {})
        version = _same(where, name, tags) or _create(where, name, model, run_id, tags)
        if alias is not None:
            where.set_registered_model_alias(name, alias, version.version)
        entry = where.get_model_version(name, version.version)
        return as_version(entry, _aliases(where, name))


def list_versions(name: str | None = None) -> list[Version]:
    """Return the versions of the model `name` (or of all), by name and number.

    Raises TrackingError when there is no model called `name`.
    """
    where = require_store(f"model {name}") if name else reading_client()
    if where is None:
        return []
    with explained(where.tracking_uri):
        query = f"name = '{name}'" if name else None
        entries = list(_pages(where, query))
        if name and not entries:
            find_version(where, name, "1", None)  # raises an error that names what exists
        aliases = {n: _aliases(where, n) for n in {entry.name for entry in entries}}
    versions = [as_version(entry, aliases[entry.name]) for entry in entries]
    return sorted(versions, key=lambda version: (version.name, version.version))


def find(versions: Sequence[Version], alias: str) -> Version | None:
    """Return the version that `alias` points to, or None."""
    return next((version for version in versions if alias in version.aliases), None)


def measurements(results: Path, source: str) -> dict[str, float | str]:
    """Return the measurements of the codec `source` in `results` (evaluation's results.json).

    Raises TrackingError when the file is not such results, or does not have that codec.
    """
    from pipeline.codec import load_model

    return measured(results, load_model(resolve_model(_as_uri(source))).fingerprint)


def as_version(entry: ModelVersion, aliases: Mapping[str, str]) -> Version:
    """Return MLflow's version as ours; `aliases` has the versions of all aliases of its model."""
    tags = {str(key): str(value) for key, value in entry.tags.items()}

    def number(key: str) -> float | None:
        return float(tags[key]) if key in tags else None

    return Version(
        name=entry.name,
        version=int(entry.version),
        aliases=tuple(sorted(a for a, v in aliases.items() if str(v) == str(entry.version))),
        fingerprint=tags.get("fingerprint", ""),
        run_id=entry.run_id or None,
        stage=tags.get("stage"),
        rate_weight=number("rate_weight"),
        distortion=tags.get("distortion"),
        step=int(tags["step"]) if "step" in tags else None,
        bpp=number("bpp"),
        psnr=number("psnr"),
        ms_ssim=number("ms_ssim"),
        measured_on=tags.get("measured_on"),
        bd_rate={
            key.removeprefix("bd_rate."): float(value)
            for key, value in tags.items()
            if key.startswith("bd_rate.")
        },
        tags=tags,
        rate_weights=tuple(float(weight) for weight in tags.get("rate_weights", "").split()),
        ranges={key.removesuffix(RANGE): _ends(tags[key]) for key in tags if key.endswith(RANGE)},
    )


def _ends(text: str) -> tuple[float, float]:
    low, _, high = text.partition(TO)
    return float(low), float(high)


def _create(
    where: MlflowClient, name: str, model: Model, run_id: str | None, tags: Mapping[str, str]
) -> ModelVersion:
    """Upload the model, then enter it into the registry; a partial upload is never entered."""
    from mlflow.entities import LoggedModelOutput

    from pipeline.tracking.flavour import written

    _ensure_name(where, name)
    experiment = (
        where.get_run(run_id).info.experiment_id if run_id else experiment_id(where, UNTRACKED)
    )
    logged = where.create_logged_model(
        experiment, name, run_id, dict(tags), model_type=model.config.architecture
    )
    try:
        with written(model, logged) as folder:
            digest = file_sha256(folder / "artifacts" / "model.safetensors")
            where.log_model_artifacts(logged.model_id, str(folder))
    except BaseException:
        where.finalize_logged_model(logged.model_id, "FAILED")
        raise
    where.finalize_logged_model(logged.model_id, "READY")
    if run_id:
        step = int(float(tags.get("step", 0)))
        where.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
    made = where.create_model_version(
        name,
        f"models:/{logged.model_id}",
        run_id,
        tags={**tags, "sha256": digest},
        model_id=logged.model_id,
    )
    return _only_one(where, made, tags["fingerprint"])


def _only_one(where: MlflowClient, version: ModelVersion, fingerprint: str) -> ModelVersion:
    """Return the first version of a logged model that was just made, and delete the others.

    A request whose answer is lost is made again, by MLflow or a proxy: that makes a second version.
    Nobody else can have made one, since nobody else knows the new logged model.
    """
    alike = _of_weights(where, version.name, fingerprint)
    first, *others = [one for one in alike if one.source == version.source] or [version]
    for other in others:
        log.info("%s version %s was made twice: deleted", other.name, other.version)
        where.delete_model_version(other.name, other.version)
    return first


def _of_weights(where: MlflowClient, name: str, fingerprint: str) -> list[ModelVersion]:
    """Return the versions of `name` whose weights have this fingerprint, by their numbers."""
    query = f"name = '{name}' and tag.fingerprint = '{fingerprint}'"
    return sorted(_pages(where, query), key=lambda one: int(one.version))


def _same(where: MlflowClient, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """Return the version of `name` with these weights, with updated tags, if there is one."""
    version = next(iter(_of_weights(where, name, tags["fingerprint"])), None)
    if version is not None:
        for key, value in tags.items():
            where.set_model_version_tag(name, version.version, key, value)
    return version


def _ensure_name(where: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        where.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _tags(model: Model, run_id: str | None, metrics: Mapping[str, float | str]) -> dict[str, str]:
    info = {**model.info.to_dict(), "run_id": run_id}
    known = {key: info[key] for key in INFO if info.get(key) not in (None, "")}
    known["architecture"] = model.config.architecture
    if model.config.rate_weights:
        known["rate_weights"] = " ".join(f"{weight:g}" for weight in model.config.rate_weights)
    return {k: str(v) for k, v in {**known, "fingerprint": model.fingerprint, **metrics}.items()}


def _training(where: MlflowClient, run_id: str | None) -> dict[str, str]:
    """Return the tag `training`, which all rates of a training share: the run that they began in.

    A run that began from scratch gets no such tag; it shares only its code with other rates.
    """
    root, seen = run_id, set()
    while root is not None and root not in seen:
        seen.add(root)
        parent = where.get_run(root).data.tags.get(PARENT)
        root = _known_run(where, parent or "") or root
    return {"training": root} if root is not None and root != run_id else {}


def _known_run(where: MlflowClient, run_id: str) -> str | None:
    """Return `run_id` if this store has it: a checkpoint may come from another store."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        return str(where.get_run(run_id).info.run_id)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _as_uri(source: str) -> str:
    """Return `runs:/ID` if `source` is the id of an MLflow run and not a file."""
    is_id = len(source) == 32 and all(c in "0123456789abcdef" for c in source)
    return f"runs:/{source}" if is_id and not Path(source).exists() else source


def _aliases(where: MlflowClient, name: str) -> dict[str, str]:
    return dict(where.get_registered_model(name).aliases)


def _pages(where: MlflowClient, query: str | None) -> list[ModelVersion]:
    versions: list[ModelVersion] = []
    token: str | None = None
    while True:
        page = where.search_model_versions(query, max_results=1000, page_token=token)
        versions += page
        token = page.token
        if not token:
            return versions


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise TrackingError(
            f"{name!r} can't be a model's name: letters, digits, blanks and _ - . are allowed"
        )
