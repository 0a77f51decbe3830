"""The embedded store: what is made where, and what is said of files that are no store."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.tracking import (
    StoreError,
    TrackingError,
    lineage,
    list_versions,
    register_model,
    resolve_model,
    run_progress,
)
from pipeline.tracking import store as store_module
from pipeline.tracking.store import client
from tests.answering import answering


def test_mlflow_s_makers_are_told_nothing() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


# Writes so much in one transaction that some of it is in the file, and dies.
KILLED = """
import os, sqlite3
database = sqlite3.connect("mlflow.db", isolation_level=None)
database.execute("PRAGMA cache_size = 2")
database.execute("BEGIN IMMEDIATE")
for number in range(200):
    database.execute(
        "INSERT INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, 0)",
        (str(number), "x" * 4000),
    )
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without a store."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_an_empty_file_is_no_store_yet(nowhere: Path) -> None:
    (nowhere / "mlflow.db").touch()
    assert list_versions() == []
    assert (nowhere / "mlflow.db").read_bytes() == b""


def test_what_a_killed_process_had_begun_is_taken_back(nowhere: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, nowhere / "mlflow.db")
    subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert (nowhere / "mlflow.db-journal").stat().st_size > 0
    assert list_versions() == []
    assert client().get_experiment("0").tags == {}


@pytest.mark.parametrize(
    ("uri", "kind", "said"),
    [
        ("http://127.0.0.1:1", StoreError, r"can't be used now: \[Errno 111\] Connection refused$"),
        (
            "postgresql://me:secret@host/db",
            TrackingError,
            "//host/db needs the Python module psycopg",
        ),
        ("sqlite:///folder.db", TrackingError, "folder.db is a folder, no tracking store"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_sentence(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, uri: str, kind: type[Exception], said: str
) -> None:
    (nowhere / "folder.db").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(kind, match=said) as caught:
        list_versions("cca")
    assert "secret" not in str(caught.value)


def test_an_answer_that_is_cut_within_its_headers_is_no_empty_store(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-ty") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        with pytest.raises(StoreError, match="can't be used now"):
            list_versions()


def test_looking_makes_no_store(nowhere: Path, checkpoint: Callable[..., Path]) -> None:
    assert list_versions() == []
    assert run_progress("0" * 32) is None
    assert "no tracking store" in (lineage(str(checkpoint())).gap or "")
    for look in (
        lambda: list_versions("cca"),
        lambda: resolve_model("models:/cca@champion"),
        lambda: resolve_model(f"runs:/{'0' * 32}"),
        lambda: lineage("models:/cca/1"),
    ):
        with pytest.raises(TrackingError, match="no tracking store"):
            look()
    assert list(nowhere.iterdir()) == []


def test_a_locked_store_is_one_sentence(
    workdir: Path, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0.1)
    other = sqlite3.connect("mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for use in (lambda: list_versions(), lambda: register_model(str(checkpoint()), "cca")):
        with pytest.raises(StoreError, match=r"mlflow.db is locked by another process") as caught:
            use()
        assert "SELECT" not in str(caught.value)
    other.execute("COMMIT")
    other.close()
    assert list_versions() == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("recipes", "database of another program"),
        ("experiments", "database of another program"),
        (b"notes, no database" * 99, "is no tracking store"),
    ],
)
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(
    nowhere: Path, content: bytes | str, words: str
) -> None:
    path = nowhere / "mlflow.db"
    if isinstance(content, str):
        with sqlite3.connect(path) as database:
            database.execute(f"CREATE TABLE {content} (title TEXT)")
            # Alembic keeps the tables of many programs.
            database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(TrackingError, match=words):
        client()
    assert path.read_bytes() == before
