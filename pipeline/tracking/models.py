"""Finds the local file of a model that a user names.

Registered versions carry the SHA-256 of their file. A download is checked against it and kept
under it in `~/.cache/cca-pipeline/models` (`XDG_CACHE_HOME` is respected), once for all names. A
copy that was damaged there is downloaded again.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.codec import box
from pipeline.common.atomic import flush
from pipeline.common.digests import file_sha256
from pipeline.common.scratch import cache_folder
from pipeline.common.secrets import without_user
from pipeline.tracking.errors import StoreError, TrackingError
from pipeline.tracking.store import explained, first_sentence, require_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# The artifact paths of a run's model and of a registered version's model.
RUN_ARTIFACT = "model/model.safetensors"
VERSION_ARTIFACT = "artifacts/model.safetensors"
NAMED = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[\w\-]+))")
RUN = re.compile(r"runs:/(?P<run>\w+)(?:/(?P<path>.+))?")
FORMS = (
    "give a file or folder that training or `pipeline import` wrote, runs:/ID, "
    "models:/NAME/VERSION, models:/NAME@ALIAS, or box, the one that comes with the package"
)


def resolve_model(model: str | Path) -> Path:
    """Return the local file or folder of `model`, and download it if it is elsewhere.

    Raises TrackingError when there is no such model, StoreError when it can't be fetched whole.
    """
    if box.is_meant(model):
        return box.box_model()
    model = str(model)
    if named := NAMED.fullmatch(model):
        where = require_store(model)
        version = find_version(where, named["name"], named["version"], named["alias"])
        return _version_file(where, version)
    if run := RUN.fullmatch(model):
        return run_artifact(run["run"], run["path"] or RUN_ARTIFACT)
    if model.startswith(("models:", "runs:")):
        raise TrackingError(f"{model} is not the name of a model: {FORMS}")
    if not Path(model).exists():
        raise TrackingError(f"there is no model {model}: {FORMS}")
    return Path(model)


def find_version(
    where: MlflowClient, name: str, version: str | None, alias: str | None
) -> ModelVersion:
    """Return version `version` of the model `name`, or the one that `alias` points to.

    Raises TrackingError when there is none; it names the versions and aliases that exist.
    """
    from mlflow.exceptions import MlflowException

    with explained(where.tracking_uri):
        try:
            if alias is not None:
                return where.get_model_version_by_alias(name, alias)
            return where.get_model_version(name, str(version))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            wanted = f"@{alias}" if alias is not None else f"/{version}"
            raise TrackingError(
                f"there is no models:/{name}{wanted} in {without_user(where.tracking_uri)}: "
                f"{_what_exists(where, name)}"
            ) from error


def _what_exists(where: MlflowClient, name: str) -> str:
    versions = sorted(int(v.version) for v in where.search_model_versions(f"name = '{name}'"))
    if not versions:
        names = [model.name for model in where.search_registered_models(max_results=20)]
        return f"it has the models {', '.join(names)}" if names else "it has no models yet"
    aliases = where.get_registered_model(name).aliases
    known = f" and the aliases {', '.join(sorted(aliases))}" if aliases else " and no alias"
    return f"{name} has the versions {', '.join(map(str, versions))}{known}"


def _version_file(where: MlflowClient, version: ModelVersion) -> Path:
    digest = version.tags.get("sha256", "")
    cached = _cache() / f"{digest}.safetensors"
    if digest and cached.is_file() and file_sha256(cached) == digest:
        return cached
    with explained(where.tracking_uri):
        root = where.get_model_version_download_uri(version.name, version.version)
    what = f"models:/{version.name}/{version.version}"
    return _fetch(where, what, f"{root}/{VERSION_ARTIFACT}", cached if digest else None, digest)


def run_artifact(run_id: str, artifact: str) -> Path:
    """Return a local file with the run's artifact; raises as `resolve_model` does."""
    where = require_store(f"runs:/{run_id}")
    with explained(where.tracking_uri):
        root = where.get_run(run_id).info.artifact_uri
    target = _cache() / f"run-{run_id}-{artifact.replace('/', '-')}"
    return _fetch(where, f"runs:/{run_id}/{artifact}", f"{root}/{artifact}", target, "")


def _fetch(where: MlflowClient, what: str, uri: str, target: Path | None, digest: str) -> Path:
    """Return the file of the artifact at `uri`, or of its whole download to `target`."""
    from mlflow.artifacts import download_artifacts

    if uri.startswith(("file:", "/")):
        path = Path(unquote(urlsplit(uri).path))
        if not path.is_file():
            raise TrackingError(f"{what} has no file: there is no {path} on this machine")
        if digest and file_sha256(path) != digest:
            raise StoreError(
                f"{what} is damaged: the SHA-256 of {path} is not the registered one; put the "
                "right file there, or register the model again"
            )
        return path
    target = target or _cache() / f"{hashlib.sha256(uri.encode()).hexdigest()}.safetensors"
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        try:
            path = Path(download_artifacts(uri, dst_path=folder, tracking_uri=where.tracking_uri))
        except Exception as error:  # each kind of artifact store raises errors of its own
            raise StoreError(f"{what} can't be downloaded: {first_sentence(error)}") from error
        if digest and file_sha256(path) != digest:
            raise StoreError(
                f"{what} arrived damaged: its SHA-256 is not the registered one; try again, and "
                "register the model again if that does not help"
            )
        flush(path)
        path.replace(target)
        flush(target.parent)
        return target


def _cache() -> Path:
    folder = cache_folder("models")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
