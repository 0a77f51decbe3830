"""Credentials in the environment and in URLs reach nothing that a main job writes or says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recipes.train import main as train
from tests.typed import typed

NAMES = (
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "SITE_API_KEY",
)
MARK = "Zx9marker"


def holders(folder: Path) -> list[str]:
    """The files under `folder`, databases too, in whose name or bytes a marker is."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(f) for f in files if MARK.encode() in f.read_bytes() or MARK in str(f)]


def run(code: int, *words: str) -> str:
    """Type a command that ends with `code`; return what it says."""
    done = typed(*words)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def test_a_main_job_leaves_no_credential_anywhere(
    write_recipe,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, f"{MARK}-{name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    photo = next((pictures / "kodak").glob("*.webp"))
    (tmp_path / "source").mkdir()
    for path in sorted((pictures / "train").glob("*.jpg"))[:4]:
        shutil.copy(path, tmp_path / "source")
    said = run(0, "shard", "source", "--out", "shards", "--workers", "1")
    recipe = str(write_recipe(data={"train": "shards", "workers": 0}))
    assert train([recipe, "stages.0.steps=2"]) == 0
    model = str(tmp_path / "runs" / "base")
    said += run(0, "register", model, "--name", "marked")
    said += run(0, "compress", str(photo), "out.cca", "--model", model)
    said += run(2, "shard", f"https://me:{MARK}@127.0.0.1:9/a.tar", "--out", "away")
    said += run(1, "inspect", f"http://me:{MARK}@127.0.0.1:9/shards")
    heard = capfd.readouterr()
    assert MARK not in said + heard.out + heard.err + caplog.text
    assert holders(tmp_path) == []
    (tmp_path / "notes").write_text(MARK)
    assert len(holders(tmp_path)) == 1
