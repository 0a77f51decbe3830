"""`pipeline register` and `pipeline models` as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli.main import build
from pipeline.tracking import Tracker
from pipeline.tracking.store import client

Checkpoint = Callable[..., Path]


def pipeline(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build(), list(words))
    return result.exit_code, result.output


def test_register_then_list(workdir: Path, checkpoint: Checkpoint) -> None:
    folder = checkpoint(stage="mse", rate_weight=0.85, step=200)
    assert pipeline("register", str(folder), "--name", "cca", "--alias", "champion") == (
        0,
        "models:/cca/1, @champion\n",
    )
    code, table = pipeline("models")
    assert code == 0
    assert all(word in table for word in ("models:/cca", "@champion", "mse", "0.85", "200"))
    code, listed = pipeline("models", "cca", "--json")
    assert code == 0
    assert json.loads(listed)[0]["uri"] == "models:/cca/1"


def test_no_model_yet(workdir: Path) -> None:
    assert pipeline("models") == (
        0,
        "no model is registered yet: pipeline register CHECKPOINT --name NAME\n",
    )


@pytest.mark.parametrize("words", [("register", "nowhere", "--name", "cca"), ("models", "nothing")])
def test_what_is_not_there_is_bad_input(workdir: Path, words: tuple[str, ...]) -> None:
    code, said = pipeline(*words)
    assert code == 2
    assert said.startswith("pipeline: there is no model")


def test_deliver_sends_what_a_run_left(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = Tracker.start("tests", "r", params={}, tags={}, folder=workdir / "out" / "base")
    tracker.log({"loss": 1.0}, 1)
    assert not tracker.finish(seconds=0.1)
    code, said = pipeline("deliver", str(workdir / "out"), "--seconds", "0.1")
    assert code == 1
    assert "records still wait in" in said
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert pipeline("deliver", str(workdir / "out")) == (0, "delivered\n")
    run = client().search_runs([str(client().get_experiment_by_name("tests").experiment_id)])[0]
    assert run.data.metrics["loss"] == 1.0
    assert pipeline("deliver", str(workdir / "nothing"))[0] == 2
