"""A store of its own for each test, and a tiny codec."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.codec import CCAConfig, CCAModel, save_model
from pipeline.tracking.store import client
from tests.tracking.servers import Server


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded store with its tables and nothing in them; making one takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def workdir(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a fresh default store; caches go below it too."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def codec() -> CCAModel:
    """A tiny codec with random weights."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CCAModel(CCAConfig.tiny()).eval()


@pytest.fixture
def checkpoint(codec: CCAModel, tmp_path: Path) -> Callable[..., Path]:
    """Save the codec with some info; returns the folder."""

    def make(name: str = "run", **info: Any) -> Path:
        save_model(codec, tmp_path / name / "model.safetensors", info)
        return tmp_path / name

    return make


PASSWORD = "correct-horse-battery-staple"


@pytest.fixture(scope="session")
def tracking_server(
    empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A tracking server with authentication (user admin, `PASSWORD`)."""
    pytest.importorskip("flask_wtf", reason="MLflow's authentication needs Flask-WTF")
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "store.db")
    words = ["server", "--host", "127.0.0.1", "--workers", "1", "--app-name", "basic-auth"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/store.db"]
    words += ["--artifacts-destination", str(folder / "artifacts")]
    server = Server(
        words,
        folder,
        "/health",
        {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32},
    )
    server.start()
    _hash_quickly(folder / "basic_auth.db")
    yield server
    server.kill()


def _hash_quickly(users: Path) -> None:
    """Let the server check passwords quickly: it does so several times in each request.

    Its own hash takes a tenth of a second of CPU time, which was most of what these tests took.
    """
    from werkzeug.security import generate_password_hash

    quick = generate_password_hash(PASSWORD, method="pbkdf2:sha256:1")
    with contextlib.closing(sqlite3.connect(users)) as database, database:
        database.execute("UPDATE users SET password_hash = ?", (quick,))


@pytest.fixture
def remote(tracking_server: Server, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The tracking server, as this process's store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    return tracking_server
