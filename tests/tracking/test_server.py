"""Against a real tracking server that asks for a password and gets killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.codec import CCAModel, load_model
from pipeline.tracking import (
    StoreError,
    Tracker,
    TrackingError,
    deliver,
    list_versions,
    register_model,
    resolve_model,
    run_progress,
)
from pipeline.tracking.store import client
from tests.patience import patience
from tests.tracking.conftest import PASSWORD
from tests.tracking.servers import Server, with_tls

pytestmark = [pytest.mark.slow, pytest.mark.timeout(patience(1500))]
Checkpoint = Callable[..., Path]
# An idle machine needs a second.
PATIENCE = patience(300)


def steps(run_id: str, name: str = "loss") -> list[int]:
    return [metric.step for metric in client().get_metric_history(run_id, name)]


TRAINING = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from pipeline.tracking import Tracker
tracker = Tracker.start("tests", "outage", params={}, tags={}, folder=Path("run"))
def train(steps):
    for step in steps:
        tracker.log({"loss": step}, step)
        if step % 500 == 250:
            tracker.log_image(np.zeros((8, 8, 3), np.uint8), "x", step)
train(range(100))
while not tracker.run_id:
    time.sleep(0.1)
print(tracker.run_id, flush=True)
sys.stdin.readline()
train(range(100, 1000))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_killed_in_the_middle_of_a_run_and_the_run_killed_too(
    remote: Server, workdir: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    assert len(run_id) == 32
    remote.kill()
    process.communicate("go\n", timeout=patience(300))
    assert run_progress(run_id) is None
    remote.start()
    assert deliver(workdir / "run", seconds=PATIENCE)
    assert steps(run_id) == list(range(1000))

    tracker = Tracker.start("tests", "outage", params={}, tags={}, folder=workdir / "run")
    assert tracker.run_id == run_id
    for step in range(900, 1100):  # from its last checkpoint on
        tracker.log({"loss": step}, step)
    assert tracker.finish(seconds=PATIENCE)
    assert steps(run_id) == list(range(1100))
    assert len(client().list_artifacts(run_id, "images")) == 2 * 2
    progress = run_progress(run_id)
    assert progress is not None
    assert (progress.step, progress.status) == (1099, "FINISHED")
    assert progress.seconds_per_step is not None


def test_wrong_credentials_are_refused_at_once_and_told(
    remote: Server, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_PASSWORD") as refusal:
        Tracker.start("tests", "r", params={}, tags={}, folder=workdir / "run")
    assert "wrong" not in str(refusal.value)
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_PASSWORD"):
        list_versions()


def test_a_certificate_of_ones_own_is_trusted_where_mlflow_is_told_so(
    remote: Server, tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with with_tls(remote, tmp_path) as (uri, certificate):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(StoreError, match="MLFLOW_TRACKING_SERVER_CERT_PATH"):
            list_versions()
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        register_model(str(checkpoint()), "trusted", "champion")
        assert resolve_model("models:/trusted@champion").is_file()
        tracker = Tracker.start("tests", "tls", params={}, tags={}, folder=tmp_path / "run")
        assert tracker.finish(seconds=PATIENCE)


def test_no_secret_reaches_runs_artifacts_or_files(
    remote: Server,
    workdir: Path,
    checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", f"uri=http://admin:{PASSWORD}@host/"])
    with_password = remote.uri.replace("//", f"//admin:{PASSWORD}@")
    tracker = Tracker.start(
        "tests",
        "secret",
        params={"uri": f"http://admin:{PASSWORD}@host/"},
        tags={"note": f"password {PASSWORD}"},
        folder=workdir / "run",
        uri=with_password,
    )
    folder = checkpoint(run_id=tracker.run_id)
    tracker.log_file(folder / "model.safetensors", "model")
    tracker.dataset("train", "ab" * 32, f"http://admin:{PASSWORD}@host/shards")
    tracker.log_text(f"token {PASSWORD}", "log.txt")
    assert tracker.finish(seconds=PATIENCE)
    register_model(tracker.run_id, "secretive")
    resolve_model("models:/secretive/1")

    written = [*remote.log.parent.rglob("*"), *workdir.parent.rglob("*"), *folder.rglob("*")]
    found = [path for path in written if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert found == []
    assert PASSWORD not in caplog.text
    assert PASSWORD not in str(client().get_run(tracker.run_id).to_dictionary())


OTHER_MACHINE = """
import sys
from pipeline import load_model
import torch
codec = load_model("models:/travelling@champion")
x = torch.rand(1, 3, 50, 70)
stream = codec.compress(x)
assert codec.decompress(stream).shape == x.shape
print(codec.fingerprint, len(stream))
"""


def test_a_version_codes_on_another_machine(
    remote: Server,
    tmp_path: Path,
    checkpoint: Checkpoint,
    codec: CCAModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    folder = checkpoint(rate_weight=0.85)
    register_model(str(folder), "travelling", "champion")
    shutil.rmtree(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere / "cache"))
    done = subprocess.run(
        [sys.executable, "-c", OTHER_MACHINE],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=patience(300),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == codec.fingerprint
    kept = next(elsewhere.rglob("*.safetensors"))
    assert load_model(kept).info.rate_weight == 0.85
    # What is damaged in the cache is fetched again.
    good = kept.read_bytes()
    kept.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert resolve_model("models:/travelling@champion") == kept
    assert kept.read_bytes() == good


def test_a_damaged_download_is_refused(
    remote: Server, checkpoint: Checkpoint, codec: CCAModel
) -> None:
    register_model(str(checkpoint()), "damaged")
    kept = max(
        remote.log.parent.rglob("artifacts/model.safetensors"), key=lambda p: p.stat().st_mtime
    )
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(StoreError, match="arrived damaged"):
        resolve_model("models:/damaged/1")
