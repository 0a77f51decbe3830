"""Where runs and versions are kept: a tracking server, or an embedded SQLite file.

MLflow's own settings decide (`MLFLOW_TRACKING_URI`, `MLFLOW_REGISTRY_URI`, credentials, TLS).
Without them, the store is `mlflow.db` in the working folder, with artifacts in `mlartifacts` beside
it. Two processes may start in an empty folder at once, and may be killed, so the tables are created
under a lock and a temporary name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pipeline.common.answers import refuse_cut_answers
from pipeline.common.atomic import flush
from pipeline.common.locks import file_lock
from pipeline.common.secrets import without_user
from pipeline.tracking.errors import StoreError, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
# How long another process may hold an embedded store before that is an error.
LOCK_SECONDS = 20.0
# Error codes of a server that can't serve now; all other codes are final.
PASSING = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "BAD_GATEWAY")
# Tables that every version of MLflow creates.
MLFLOWS = {"alembic_version", "experiments", "runs", "metrics", "params", "tags"}
REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
# The end of the messages of urllib3 and requests about a connection that could not be made.
CAUSE = re.compile(r"Max retries exceeded .*: ([^:]*?)[\"')]*$", re.DOTALL)
# HTTP statuses of uploads that would fail again, such as 413 from a proxy with a limit. 404 is not
# among them: some proxies answer so while a server restarts.
NEVER = (400, 413, 414, 415, 422)


def tracking_uri(uri: str | None = None) -> str:
    """Return the store to use: `uri`, else MLflow's own setting, else SQLite in this folder."""
    import mlflow

    # MLflow leaves this function without types.
    if uri is None and mlflow.tracking.is_tracking_uri_set():
        uri = str(mlflow.get_tracking_uri())
    uri = _without_credentials(uri or f"{SQLITE}mlflow.db")
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).resolve()}"
    return uri


def _without_credentials(uri: str) -> str:
    """Move `user:password@` from `uri` to the variables where MLflow reads but never shows it."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.username:
        return uri
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password or ""))
    return without_user(uri)


def client(uri: str | None = None) -> MlflowClient:
    """Return MLflow's client for `tracking_uri(uri)`; creates the tables of an embedded store.

    Raises TrackingError for a file that is no tracking store, StoreError for one that is locked.
    """
    where = tracking_uri(uri)
    _prepare()
    with explained(where):
        if where.startswith(SQLITE):
            path = Path(where.removeprefix(SQLITE))
            _make_tables(path)
            _look_into(path)
        return _client(where)


def reading_client(uri: str | None = None) -> MlflowClient | None:
    """Return MLflow's client for an existing store; None for an embedded one that does not exist.

    Never creates a store. Raises as `client` does.
    """
    where = tracking_uri(uri)
    if where.startswith(SQLITE) and not _holds_something(Path(where.removeprefix(SQLITE))):
        return None
    return client(uri)


def _holds_something(path: Path) -> bool:
    """Tell whether an embedded store exists; an empty file does not count."""
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def require_store(what: str) -> MlflowClient:
    """Return `reading_client()`; raises TrackingError about `what` if there is no store."""
    where = reading_client()
    if where is None:
        raise TrackingError(
            f"there is no {what}: there is no tracking store {tracking_uri()} yet; set"
            " MLFLOW_TRACKING_URI to the one that has it"
        )
    return where


def _client(where: str) -> MlflowClient:
    import mlflow

    registry = os.environ.get("MLFLOW_REGISTRY_URI") or where
    return mlflow.MlflowClient(where, registry_uri=registry)


def _prepare() -> None:
    refuse_cut_answers()
    # MLflow would retry for minutes; the spool retries itself, and users should not wait so long.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # Its progress bars would disturb ours, and standard output is for results.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # They would log every new table and every retry; important problems are raised as errors.
    for name in ("mlflow.store", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _look_into(path: Path) -> None:
    """Raise an error for a file that MLflow would fail on, or would add its tables to."""
    import sqlite3

    if path.is_dir():
        raise TrackingError(f"{path} is a folder, no tracking store: set MLFLOW_TRACKING_URI")
    try:
        tables = _tables(path, "ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
            raise _of_database(f"{SQLITE}{path}", error) from error
        # SQLite first rolls back the changes of a killed process, which needs write access.
        try:
            tables = _tables(path, "rw")
        except sqlite3.DatabaseError as again:
            raise _of_database(f"{SQLITE}{path}", again) from again
    except sqlite3.DatabaseError as error:
        raise _of_database(f"{SQLITE}{path}", error) from error
    if tables and not tables >= MLFLOWS:
        raise TrackingError(
            f"{path} is the database of another program: move it, or set MLFLOW_TRACKING_URI"
        )


def _tables(path: Path, mode: str) -> set[str]:
    """Return the names of the tables of an SQLite file, opened for reading or for both."""
    import sqlite3

    uri = f"{path.as_uri()}?mode={mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS)) as database:
        rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return {str(name) for (name,) in rows}


def _of_database(uri: str, error: BaseException) -> TrackingError | StoreError:
    """Turn an error of an embedded database or of SQLAlchemy into one of ours."""
    sentence = first_sentence(error)
    if "locked" in sentence or "busy" in sentence:
        return StoreError(
            f"the tracking store {without_user(uri)} is locked by another process: run the command"
            " again when that is done; for many processes or a network file system, run a server"
            " (docs/tracking.md)"
        )
    if "not a database" in sentence or "malformed" in sentence:
        return TrackingError(
            f"{without_user(uri)} is no tracking store ({sentence}): move the file, or set"
            " MLFLOW_TRACKING_URI"
        )
    return StoreError(f"the tracking store {without_user(uri)} can't be used now: {sentence}")


def _make_tables(path: Path) -> None:
    """Create the embedded store `path` with all its tables, unless it exists already.

    MLflow's own lock covers only a part of that: two first starts at once would damage the file.
    """
    import mlflow

    if _holds_something(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f".{path.name}.lock")):
        if _holds_something(path):
            return
        for stale in path.parent.glob(f".{path.name}.*.making*"):
            stale.unlink()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.making")
        maker = mlflow.MlflowClient(f"{SQLITE}{temporary}", registry_uri=f"{SQLITE}{temporary}")
        maker.search_experiments()
        maker.search_registered_models()
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)


def experiment_id(mlflow_client: MlflowClient, name: str) -> str:
    """Return the id of the experiment `name`, which is created if it is missing."""
    from mlflow.exceptions import MlflowException

    experiment = mlflow_client.get_experiment_by_name(name)
    if experiment is None:
        uri = mlflow_client.tracking_uri
        artifacts = Path(uri.removeprefix(SQLITE)).parent / "mlartifacts"
        location = artifacts.as_uri() if uri.startswith(SQLITE) else None
        try:
            return str(mlflow_client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            # Another process may have created it since we looked.
            experiment = mlflow_client.get_experiment_by_name(name)
            if experiment is None:
                raise error from None
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name} is deleted in {without_user(mlflow_client.tracking_uri)}: "
            "restore it (mlflow experiments restore) or name another one"
        )
    return str(experiment.experiment_id)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn errors of MLflow inside the block into ours, which name the store."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except SQLAlchemyError as error:
        raise _of_database(uri, error) from error
    except MlflowException as error:
        sentence = first_sentence(error)
        if "OperationalError" in str(error):
            raise _of_database(uri, error) from error
        if error.error_code in REFUSED:
            raise TrackingError(
                f"the tracking store {without_user(uri)} refuses these credentials: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN "
                f"({sentence})"
            ) from error
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise StoreError(
                f"the tracking store {without_user(uri)} shows a certificate that this machine "
                "does not trust: set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of its authority"
            ) from error
        if is_passing(error):
            raise StoreError(
                f"the tracking store {without_user(uri)} can't be used now: {_cause(error)}"
            ) from error
        if "Response body: '<" in str(error):
            raise TrackingError(
                f"{without_user(uri)} answers with a web page and is not an MLflow server: check"
                " MLFLOW_TRACKING_URI, and whether a proxy stands in front of the server"
            ) from error
        raise TrackingError(f"the tracking store {without_user(uri)} says: {sentence}") from error
    except ModuleNotFoundError as error:
        raise TrackingError(
            f"the tracking store {without_user(uri)} needs the Python module {error.name}, which is"
            " not installed here"
        ) from error
    except (RequestException, OSError) as error:
        raise StoreError(
            f"the tracking store {without_user(uri)} can't be reached: {first_sentence(error)}"
        ) from error


def _cause(error: BaseException) -> str:
    """Return the message that matters: for a failed connection, the innermost one."""
    match = CAUSE.search(str(error))
    return without_user(match[1])[:300] if match else first_sentence(error)


def is_passing(error: BaseException) -> bool:
    """Tell whether the same request may succeed later."""
    from mlflow.exceptions import MlflowException

    return not isinstance(error, MlflowException) or error.error_code in PASSING


def is_rejected(error: BaseException) -> bool:
    """Tell whether a store that works can never take this request."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, RequestException):
        return error.response is not None and error.response.status_code in NEVER
    if isinstance(error, MlflowException):
        return error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
    return isinstance(error, ValueError | TypeError | KeyError | FileNotFoundError)


def is_too_large(error: BaseException) -> bool:
    """Tell whether an upload failed because of the file, not because of its place."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, RequestException):
        return error.response is not None and error.response.status_code in NEVER
    return isinstance(error, MlflowException) and any(
        f" {code}" in first_sentence(error) for code in NEVER
    )


def first_sentence(error: BaseException) -> str:
    """Return the first line of `error`, without credentials, at most 300 characters."""
    return without_user((str(error).splitlines() or [type(error).__name__])[0])[:300]
