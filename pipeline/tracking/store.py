"""Where runs and versions are kept: a tracking server, or an embedded SQLite file.

MLflow's own settings decide (`MLFLOW_TRACKING_URI`, `MLFLOW_REGISTRY_URI`, credentials, TLS); where
they say nothing, the store is `mlflow.db` in the working folder with artifacts in `mlartifacts`
beside it. Two processes may start on an empty folder at once, and may be killed: the tables are
made under a lock and a temporary name.
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
# How long another process may hold an embedded store before that is told.
LOCK_SECONDS = 20.0
# Answers of a server that is there but can't serve now; anything else it says is its last word.
PASSING = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "BAD_GATEWAY")
# Tables that every version of MLflow has made.
MLFLOWS = {"alembic_version", "experiments", "runs", "metrics", "params", "tags"}
REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
# How urllib3 and requests end what they say of a connection that could not be made.
CAUSE = re.compile(r"Max retries exceeded .*: ([^:]*?)[\"')]*$", re.DOTALL)
# What an upload is answered with that no repetition helps, such as 413 from a proxy with a limit.
# Not 404: that is what some say for a server that restarts.
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
    """Move `user:password@` from `uri` to where MLflow looks for it and never shows it."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.username:
        return uri
    os.environ.setdefault("MLFLOW_TRACKING_USERNAME", unquote(parts.username))
    os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", unquote(parts.password or ""))
    return without_user(uri)


def client(uri: str | None = None) -> MlflowClient:
    """Return MLflow's client for `tracking_uri(uri)`; makes an embedded store's tables.

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
    """Return MLflow's client for a store that is there; None for an embedded one that is not.

    Looking makes no store. Raises as `client`.
    """
    where = tracking_uri(uri)
    if where.startswith(SQLITE) and not _holds_something(Path(where.removeprefix(SQLITE))):
        return None
    return client(uri)


def _holds_something(path: Path) -> bool:
    """Say whether an embedded store is there; an empty file is none yet."""
    return path.exists() and (not path.is_file() or path.stat().st_size > 0)


def require_store(what: str) -> MlflowClient:
    """Return `reading_client()`; raises TrackingError where no store can have `what`."""
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
    # MLflow would try for minutes; the spool has patience of its own, and a user has less.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # Its bars would tear ours, and standard output is for results.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # They would report every table made and every retry; what matters is raised as an error.
    for name in ("mlflow.store", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _look_into(path: Path) -> None:
    """Raise an error for a file that MLflow would fail on, or make its tables in."""
    import sqlite3

    if path.is_dir():
        raise TrackingError(f"{path} is a folder, no tracking store: set MLFLOW_TRACKING_URI")
    try:
        tables = _tables(path, "ro")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
            raise _of_database(f"{SQLITE}{path}", error) from error
        # What a killed process had begun is taken back first, and a reader may not do that.
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
    """Return the error to raise for one of an embedded database or of SQLAlchemy."""
    sentence = first_sentence(error)
    if "locked" in sentence or "busy" in sentence:
        return StoreError(
            f"the tracking store {without_user(uri)} is locked by another process: type the command"
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
    """Make the embedded store `path` with all its tables, unless it is there already.

    MLflow's own lock covers only a part of it: two first starts at once damage the file.
    """
    import mlflow

    if _holds_something(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(path.with_name(f".{path.name}.lock")):
        if _holds_something(path):
            return
        for left in path.parent.glob(f".{path.name}.*.making*"):
            left.unlink()
        temporary = path.with_name(f".{path.name}.{os.getpid()}.making")
        maker = mlflow.MlflowClient(f"{SQLITE}{temporary}", registry_uri=f"{SQLITE}{temporary}")
        maker.search_experiments()
        maker.search_registered_models()
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)


def experiment_id(mlflow_client: MlflowClient, name: str) -> str:
    """Return the id of the experiment `name`, creating it where it is missing."""
    from mlflow.exceptions import MlflowException

    found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        uri = mlflow_client.tracking_uri
        beside = Path(uri.removeprefix(SQLITE)).parent / "mlartifacts"
        location = beside.as_uri() if uri.startswith(SQLITE) else None
        try:
            return str(mlflow_client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            # Another process may have created it since we looked.
            found = mlflow_client.get_experiment_by_name(name)
            if found is None:
                raise error from None
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment {name} is deleted in {without_user(mlflow_client.tracking_uri)}: "
            "restore it (mlflow experiments restore) or name another one"
        )
    return str(found.experiment_id)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into an error of ours that names the store."""
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
                f"what answers at {without_user(uri)} is a page for people, no MLflow server:"
                " look at MLFLOW_TRACKING_URI, and whether a proxy stands before the server"
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
    """Return the sentence that matters: of a failed connection the innermost one."""
    found = CAUSE.search(str(error))
    return without_user(found[1])[:300] if found else first_sentence(error)


def is_passing(error: BaseException) -> bool:
    """Say whether `error` may be gone when the same request is made again later."""
    from mlflow.exceptions import MlflowException

    return not isinstance(error, MlflowException) or error.error_code in PASSING


def is_rejected(error: BaseException) -> bool:
    """Say whether the store, up and willing, can never take what it was given."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, RequestException):
        return error.response is not None and error.response.status_code in NEVER
    if isinstance(error, MlflowException):
        return error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
    return isinstance(error, ValueError | TypeError | KeyError | FileNotFoundError)


def is_too_large(error: BaseException) -> bool:
    """Say whether a file, and not its place, is what an upload failed by."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, RequestException):
        return error.response is not None and error.response.status_code in NEVER
    return isinstance(error, MlflowException) and any(
        f" {code}" in first_sentence(error) for code in NEVER
    )


def first_sentence(error: BaseException) -> str:
    """Return the first line of what `error` says, without credentials, at most 300 characters."""
    return without_user((str(error).splitlines() or [type(error).__name__])[0])[:300]
