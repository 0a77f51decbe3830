"""A run's records arrive, once, whatever happens on the way."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests

from pipeline.tracking import (
    RunProgress,
    Tracker,
    TrackingError,
    deliver,
    run_progress,
    spooled_progress,
)
from pipeline.tracking.environment import git
from pipeline.tracking.store import client
from tests.patience import patience, wait_for


def start(folder: Path | None = None, **more: object) -> Tracker:
    settings = {"params": {"lr": 1e-4}, "tags": {"stage": "base"}} | more
    return Tracker.start("tests", "a run", folder=folder, **settings)  # type: ignore[arg-type]


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client().get_metric_history(run_id, name)]


def test_everything_logged_is_in_the_default_store(workdir: Path) -> None:
    tracker = start(params={"data": {"train": "a", "sizes": [1, 2]}, "lr": 1e-4})
    for step in range(2500):
        tracker.log({"loss": 1 / (step + 1), "bpp": 0.5}, step)
    note = workdir / "note.txt"
    note.write_text("kept")
    tracker.log_file(note, "notes")
    note.unlink()
    tracker.log_image(np.full((40, 30, 3), 90, np.uint8), "pictures/kodim01", 10)
    tracker.dataset("train", "ab" * 32, "/data/shards")
    assert tracker.finish()

    run = client().get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"data.train": "a", "data.sizes": "[1, 2]", "lr": "0.0001"}
    assert history(tracker.run_id, "loss") == [(s, 1 / (s + 1)) for s in range(2500)]
    assert [i.dataset.name for i in run.inputs.dataset_inputs] == ["train"]
    assert {t.key: t.value for t in run.inputs.dataset_inputs[0].tags}["digest"] == "ab" * 32
    assert len(client().list_artifacts(tracker.run_id, "images")) == 2
    kept = client().download_artifacts(tracker.run_id, "notes/note.txt")
    assert Path(kept).read_text() == "kept"
    assert (workdir / "mlartifacts").is_dir()


def test_infinite_and_missing_values_arrive(workdir: Path) -> None:
    tracker = start()
    tracker.log({"a": math.inf, "b": math.nan}, 1)
    tracker.finish()
    assert history(tracker.run_id, "a")[0][1] > 1e300
    assert math.isnan(history(tracker.run_id, "b")[0][1])


def test_a_resumed_run_is_the_same_run_and_repeats_nothing(workdir: Path) -> None:
    first = start(workdir / "run")
    for step in range(10):
        first.log({"loss": step}, step)
    first.log_image(np.zeros((8, 8, 3), np.uint8), "x", 5)
    first.finish("KILLED")
    assert client().get_run(first.run_id).info.status == "KILLED"
    second = start(workdir / "run", params={"lr": 1e-5, "new": 1})
    assert client().get_run(first.run_id).info.status == "KILLED" or second.run_id == first.run_id
    for step in range(5, 15):  # the checkpoint was older than the last record
        second.log({"loss": step}, step)
    second.log_image(np.zeros((8, 8, 3), np.uint8), "x", 5)
    second.finish()
    assert second.run_id == first.run_id
    assert history(first.run_id, "loss") == [(step, step) for step in range(15)]
    assert len(client().list_artifacts(first.run_id, "images")) == 2
    run = client().get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.0001", "new": "1"}
    assert run.data.tags["changed_settings"] == '{"lr": "1e-05"}'


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.tracking import Tracker
tracker = Tracker.start("tests", "killed", params={}, tags={}, folder=Path("run"))
for step in range(3000):
    tracker.log({"loss": step}, step)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_and_doubles_nothing(workdir: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED], check=False, timeout=patience(300))
    tracker = Tracker.start("tests", "killed", params={}, tags={}, folder=workdir / "run")
    for step in range(2990, 3010):
        tracker.log({"loss": step}, step)
    assert tracker.finish()
    assert history(tracker.run_id, "loss") == [(step, step) for step in range(3010)]


def test_a_record_torn_by_a_power_cut_is_dropped(workdir: Path) -> None:
    first = start(workdir / "run")
    first.log({"loss": 1}, 1)
    first.finish("KILLED")
    with (workdir / "run/tracking/spool.jsonl").open("a") as spool:
        spool.write('{"kind":"metr')
    second = start(workdir / "run")
    second.log({"loss": 2}, 2)
    assert second.finish()
    assert history(first.run_id, "loss") == [(1, 1), (2, 2)]


@pytest.mark.slow
def test_two_processes_start_on_an_empty_folder_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code = (
        "import sys; from pipeline.tracking import Tracker\n"
        "t = Tracker.start('tests', sys.argv[1], params={}, tags={})\n"
        "for step in range(200): t.log({'loss': step}, step)\n"
        "assert t.finish(); print(t.run_id)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(i)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    ids = [run.communicate(timeout=patience(300))[0].split()[-1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    monkeypatch.chdir(tmp_path)
    assert all(len(history(run_id, "loss")) == 200 for run_id in ids)
    assert len({client().get_run(run_id).info.experiment_id for run_id in ids}) == 1


@pytest.mark.slow
def test_an_unreachable_store_delays_nothing_but_the_sight_of_it(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr("pipeline.tracking.tracker.START_SECONDS", 0.5)
    first = start(workdir / "run", parent_run_id="0" * 32)
    assert first.run_id == ""
    first.log({"loss": 1}, 1)
    assert not first.finish(seconds=0.1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/mlflow.db")
    second = start(workdir / "run")
    second.log({"loss": 2}, 2)
    assert second.finish()
    assert history(second.run_id, "loss") == [(1, 1), (2, 2)]
    assert client().get_run(second.run_id).data.tags["mlflow.parentRunId"] == "0" * 32


def test_a_run_that_the_store_does_not_have_is_refused(workdir: Path) -> None:
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI"):
        start(workdir / "run", run_id="0" * 32)


@pytest.mark.parametrize("name", ["", "a=b", "x" * 251])
def test_a_name_that_mlflow_can_not_take_is_refused_at_once(workdir: Path, name: str) -> None:
    tracker = start()
    with pytest.raises(TrackingError, match="can't be used in MLflow"):
        tracker.log({name: 1.0}, 1)
    assert tracker.finish()


def test_an_unknown_end_is_refused(workdir: Path) -> None:
    tracker = start()
    with pytest.raises(TrackingError, match=re.escape("FINISHED, FAILED, KILLED")):
        tracker.finish("DONE")
    assert tracker.finish("FAILED")


def test_progress_is_told_while_a_run_runs_and_none_for_an_unknown_run(workdir: Path) -> None:
    tracker = start()
    tracker.log({"loss": 1}, 10)
    time.sleep(0.01)
    tracker.log({"loss": 1}, 30)
    tracker.finish("KILLED")
    progress = run_progress(tracker.run_id)
    assert progress is not None
    assert (progress.step, progress.status) == (30, "KILLED")
    assert 0 < (progress.seconds_per_step or 0) < 1
    assert run_progress("0" * 32) is None


def test_settings_of_tools_are_no_secrets(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "true")
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    tracker = start(params={"flip": False, "fused": True, "source": "hf_abc@hub"})
    tracker.finish()
    params = client().get_run(tracker.run_id).data.params
    assert params == {"flip": "false", "fused": "true", "source": "[redacted]@hub"}


def test_what_a_run_was_made_with_is_recorded(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    tracker = start()
    tracker.finish()
    tags = client().get_run(tracker.run_id).data.tags
    assert tags["slurm.job_id"] == "4711"
    assert tags["slurm.restart_count"] == "2"
    assert tags["stage"] == "base"
    assert {"host", "cpu", "gpu", "python", "torch"} <= tags.keys()
    kept = client().list_artifacts(tracker.run_id, "surroundings")
    path = next(item.path for item in kept if item.path.endswith(".json"))
    about = json.loads(Path(client().download_artifacts(tracker.run_id, path)).read_text())
    assert about["packages"]["mlflow"]
    assert about["slurm"] == {"SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": "2"}
    if about["git"]:
        assert len(about["git"]["commit"]) == 40
        assert tags["mlflow.source.git.commit"] == about["git"]["commit"]


def test_system_metrics_go_on_counting_after_a_resume(workdir: Path) -> None:
    spool = workdir / "run" / "tracking" / "spool.jsonl"
    for _ in range(2):
        tracker = start(workdir / "run")
        wait_for(lambda: "system/" in spool.read_text(), "a system metric")
        tracker.finish("KILLED")
    found = history(tracker.run_id, "system/cpu_utilization_percentage")
    assert [step for step, _ in found] == list(range(len(found)))


def too_large(*_: object) -> None:
    answer = requests.Response()
    answer.status_code = 413
    answer.raise_for_status()


def without_credentials(*_: object) -> None:
    raise RuntimeError("Unable to locate credentials")


@pytest.mark.parametrize("refuse", [too_large, without_credentials])
def test_a_file_that_can_not_be_stored_holds_nothing_up_and_is_delivered_later(
    workdir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refuse: Callable[..., None],
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr("mlflow.MlflowClient.log_artifact", refuse)
        tracker = start(workdir / "run")
        tracker.log_text("much", "large.txt")
        tracker.log_image(np.zeros((8, 8, 3), np.uint8), "x", 1)
        tracker.log({"loss": 1}, 1)
        assert not tracker.finish(seconds=300)
        told = [r.message for r in caplog.records if "can't be stored" in r.message]
    assert history(tracker.run_id, "loss") == [(1, 1)]
    assert client().get_run(tracker.run_id).info.status == "FINISHED"
    assert len(told) == 1
    assert "mlartifacts" in told[0]
    assert "pipeline deliver" in told[0]

    assert deliver(workdir / "run")
    kept = client().download_artifacts(tracker.run_id, "large.txt")
    assert Path(kept).read_text() == "much"
    assert len(client().list_artifacts(tracker.run_id, "images")) == 2
    assert not any(path.is_file() for path in (workdir / "run/tracking/files").rglob("*"))


def test_metrics_pass_a_file_whose_upload_hangs(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    monkeypatch.setattr("mlflow.MlflowClient.log_artifact", lambda *_: going_on.wait(300))
    tracker = start(workdir / "run")
    tracker.log_text("slow", "slow.txt")
    tracker.log({"loss": 1}, 1)
    wait_for(
        lambda: bool(tracker.run_id) and history(tracker.run_id, "loss") == [(1, 1)], "the metric"
    )
    going_on.set()
    assert tracker.finish()


def test_a_folder_that_only_the_server_reaches_costs_files_alone(workdir: Path) -> None:
    client().create_experiment("elsewhere", artifact_location="file:///sys/kernel/none/artifacts")
    tracker = Tracker.start("elsewhere", "r", params={"a": 1}, tags={}, folder=workdir / "run")
    tracker.log({"loss": 0.5}, 3)
    tracker.finish(seconds=300)
    run = client().get_run(tracker.run_id)
    assert (run.data.metrics["loss"], run.data.params) == (0.5, {"a": "1"})
    assert run.info.status == "FINISHED"


def test_a_deleted_run_is_not_resumed_and_loses_nothing(workdir: Path) -> None:
    tracker = start(workdir / "run")
    tracker.log({"loss": 1}, 1)
    assert tracker.finish()
    client().delete_run(tracker.run_id)
    with pytest.raises(TrackingError, match=f"{tracker.run_id} was deleted .* restore"):
        start(workdir / "run")

    client().restore_run(tracker.run_id)
    experiment = client().get_run(tracker.run_id).info.experiment_id
    client().delete_experiment(experiment)
    with pytest.raises(TrackingError, match=f"experiments restore --experiment-id {experiment}"):
        start(workdir / "run")

    client().restore_experiment(experiment)
    again = start(workdir / "run")
    client().delete_run(tracker.run_id)
    again.log({"loss": 2}, 2)
    assert not again.finish(seconds=3)
    client().restore_run(tracker.run_id)
    assert deliver(workdir / "run")
    assert history(tracker.run_id, "loss") == [(1, 1), (2, 2)]
    assert not (workdir / "run/tracking/rejected.jsonl").exists()


def test_a_record_that_mlflow_rejects_is_set_aside_and_the_rest_arrives(workdir: Path) -> None:
    tracker = start(workdir / "run")
    tracker.log_tags({"x" * 300: "too long a name"})
    tracker.log({"loss": 1}, 1)
    assert tracker.finish()
    assert history(tracker.run_id, "loss") == [(1, 1)]
    assert "too long a name" in (workdir / "run/tracking/rejected.jsonl").read_text()


def test_progress_of_a_run_is_read_from_its_own_records(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert spooled_progress(workdir / "run") is None
    folder = workdir / "run" / "tracking"
    folder.mkdir(parents=True)
    records = [
        {"kind": "begin", "time": 0, "params": {}, "tags": {}},
        {"kind": "metrics", "time": 0, "step": 90, "values": {"loss": 1}},
        {"kind": "begin", "time": 10_000, "params": {}, "tags": {}},
        {"kind": "metrics", "time": 10_000, "step": 100, "values": {"loss": 1}},
        {"kind": "metrics", "time": 14_000, "step": 120, "values": {"loss": 1}},
        {"kind": "metrics", "time": 15_000, "step": 7, "values": {"system/cpu": 1}},
    ]
    lines = "\n".join(map(json.dumps, records)) + '\n{"kind": "metr'
    (folder / "spool.jsonl").write_text(lines)
    assert spooled_progress(workdir / "run") == RunProgress(120, 0.2, "RUNNING")
    # And a server that is gone is not even loaded MLflow for.
    assert run_progress("0" * 32) is None


def test_looking_at_a_checkout_leaves_it_alone(tmp_path: Path) -> None:
    def run(*words: str) -> None:
        author = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True)

    run("init", "--quiet")
    (tmp_path / "a.py").write_text("1\n")
    run("add", "a.py")
    run("commit", "--quiet", "--message", "a")
    os.utime(tmp_path / "a.py", (1e9, 1e9))  # git would note the new time in its index
    before = (tmp_path / ".git" / "index").read_bytes()
    assert git(tmp_path)["files"] == []
    assert (tmp_path / ".git" / "index").read_bytes() == before
    (tmp_path / "a.py").write_text("2\n")
    found = git(tmp_path)
    assert found["files"] == [" M a.py"]
    assert "+2" in found["diff"]
