"""The tiny recipe's whole plan on a real Slurm cluster, disturbed in the ways that clusters are."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from orchestration import control
from orchestration.plan import Plan
from orchestration.states import JobStatus, State
from shards.options import Options
from shards.run import shard
from tests.cluster.conftest import Cluster
from tests.cluster.tools import ended, wait_for
from tests.patience import patience
from tests.tracking.pages import Pages, found_browser
from tests.tracking.servers import Server
from tests.typed import typed

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(patience(2400))]

RECIPE = """
name: tiny
out: runs
model: tiny
data: {train: data/shards, validation: held-out, validation_pictures: 1, workers: 0}
evaluate_every: 1000
checkpoint: {every_steps: 5, background: false}
tracking: {experiment: tiny, every_steps: 2, pictures: 1}
stages:
  - {name: base, rate_weight: 1.8, steps: 60, batch: 2, crop: 64, lr: 1e-3}
  - {name: mse, init: base, rate_weight: [0.3, 15], steps: 40, batch: 2, crop: 64}
"""

PROFILE = """
engine: slurm
partition: main
signal_seconds: 60
resources:
  default: {cpus: 1, memory: 2G, minutes: 10}
pictures: {source: [photos], parts: 2, options: [--shard-size, 200KB, --min-side, "64"]}
evaluation: {options: [--peers, jpeg]}
"""

# Of a half of the held-out picture, to find it again on a page, and how much of it at least.
COLOUR = (200, 30, 120)
PIXELS = 5000


@pytest.fixture(scope="session")
def home(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, root: Path, pictures: Path
) -> Path:
    """A folder with the recipe, its pictures, and what an undisturbed training of it gives.

    Of several test processes one makes it.
    """
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / "tiny"
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "ready").exists():
            shutil.rmtree(place, ignore_errors=True)
            _make(place, root, pictures)
            (place / "ready").touch()
    return place


def _make(place: Path, root: Path, pictures: Path) -> None:
    for folder in ("photos", "held-out"):
        (place / folder).mkdir(parents=True)
    photos = sorted((pictures / "train").glob("*.jpg"))
    for photo in photos[:6]:
        shutil.copy(photo, place / "photos")
    with Image.open(photos[6]) as opened:
        image = opened.crop((0, 0, 256, 192))
        image.paste(COLOUR, (0, 0, image.width, image.height // 2))
        image.save(place / "held-out" / "one.png")
    (place / "recipes").symlink_to(root / "recipes")
    (place / "tiny.yaml").write_text(RECIPE)
    (place / "slurm.yaml").write_text(PROFILE)
    options = ["--shard-size", "200KB", "--min-side", "64"]
    run(place, "pipeline", "shard", "photos", "--out", "data/shards", *options)
    run(place, "python", "recipes/train.py", "tiny.yaml")


def run(place: Path, *words: str) -> str:
    """Return what one of the environment's commands prints, run in `place`."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PATH": _path()}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _path() -> str:
    return f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with recipe and pictures, and nothing made yet."""
    shutil.copytree(home, tmp_path, symlinks=True, dirs_exist_ok=True)
    for made in ("data", "runs", "mlruns", "mlartifacts"):
        shutil.rmtree(tmp_path / made, ignore_errors=True)
    for store in tmp_path.glob("mlflow.db*"):
        store.unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def job_of(plan: Plan, folder: Path, name: str) -> JobStatus:
    return next(one for one in control.status(plan, folder) if one.name == name)


def assert_same_weights(one: Path, other: Path) -> None:
    """Two trainings gave the same weights, to the last bit."""
    from safetensors.torch import load_file

    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert left.keys() == right.keys()
    different = [name for name in left if not left[name].equal(right[name])]
    assert not different


@pytest.mark.nightly
def test_whole_plan_survives_a_time_limit_and_a_killed_node(
    place: Path, home: Path, cluster: Cluster
) -> None:
    plan_id = json.loads(
        run(place, "pipeline", "schedule", "tiny.yaml", "--on", "slurm.yaml", "--json")
    )["plan"]
    plan, folder = control.find(plan_id)

    def mid_stage(name: str) -> bool:
        assert job_of(plan, folder, "train-base").state != State.FAILED
        return any((place / "runs" / name / "checkpoints").glob("step-*/checkpoint.json"))

    # Nearly at the time limit, in the middle of the first stage.
    wait_for(lambda: mid_stage("base"), "a checkpoint of the first stage")
    number = job_of(plan, folder, "train-base").engine_id
    cluster.command("scancel", "--batch", "--signal=USR1", number)
    wait_for(lambda: job_of(plan, folder, "train-base").restarts == 1, "the requeue")
    wait_for(lambda: progress_shown(plan_id).endswith(" of 60"), "progress")

    # The node's power fails in the middle of the second.
    wait_for(lambda: mid_stage("mse/w0.3"), "a checkpoint of the second stage")
    node = int(job_of(plan, folder, "train-mse-w0.3").nodes.removeprefix("n"))
    cluster.kill_node(node)
    try:
        found = ended(plan, folder)
    finally:
        cluster.start_node(node)

    assert {name: one.state for name, one in found.items()} == dict.fromkeys(found, State.DONE)
    assert found["train-base"].restarts == 1
    assert found["train-mse-w0.3"].restarts == 1
    assert "queued again" in "".join(control.logs(plan, folder, "train-base"))
    for name in ("base", "mse/w0.3", "mse/w15"):
        assert_same_weights(place / "runs" / name, home / "runs" / name)
    versions = json.loads(run(place, "pipeline", "models", "tiny", "--json"))
    assert [version["rate_weight"] for version in versions] == [0.3, 15]
    assert [alias for version in versions for alias in version["aliases"]].count("champion") == 1
    assert control.retry(plan, folder) == []
    assert "tiny had no champion" in "".join(control.logs(plan, folder, "promote-mse"))
    assert_way_back_to_the_photos()
    assert_seen_in_a_browser(place)


def assert_way_back_to_the_photos() -> None:
    """From the champion through the stages that Slurm ran to what the shards were made of."""
    from pipeline.tracking import lineage

    way = lineage("models:/tiny@champion")
    assert way.gap is None
    assert [step.tags["stage"] for step in way.steps] == ["mse", "base"]
    assert all(step.tags["slurm.job_id"].isdecimal() for step in way.steps)
    assert way.steps[-1].tags["slurm.restart_count"] == "1"
    manifest = way.steps[-1].data[0].manifest
    assert manifest is not None
    assert [Path(source).name for source in manifest["created_with"]["sources"]] == ["photos"]


def assert_seen_in_a_browser(place: Path) -> None:
    """MLflow's own pages show the plan's runs, their pictures and the versions."""
    browser = found_browser()
    if browser is None:
        _without_browser()
    # As docs/tracking.md has it.
    words = ["ui", "--backend-store-uri", "sqlite:///mlflow.db", "--workers", "1"]
    server = Server(words, place, "/health")
    server.start()
    try:
        pages = Pages(browser, server.uri, place)
        pages.assert_shown("experiments/1/runs", "tiny/base", "3 matching runs")
        for name in ("base", "mse/w15"):
            run = f"experiments/1/runs/{run_id_of(place / 'runs' / name)}"
            pages.assert_shown(f"{run}/model-metrics", f"tiny/{name}", "train (", "pictures (1)")
            picture = pictures_of(place / "runs" / name)[-1]
            pages.assert_shown(f"{run}/artifacts/{picture}", colour=COLOUR, pixels=PIXELS)
        pages.assert_shown("models/tiny", "Version 1", "Version 2", "champion", "rate_weight")
    finally:
        server.kill()


def run_id_of(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["run_id"])


def pictures_of(folder: Path) -> list[str]:
    """Return what the store calls the pictures of the run in `folder`."""
    from mlflow import MlflowClient

    listed = MlflowClient("sqlite:///mlflow.db").list_artifacts(run_id_of(folder), "images")
    return sorted(one.path for one in listed if one.path.endswith(".png"))


def _without_browser() -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail("no browser, and CI must have one: apt-get install chromium")
    pytest.skip("all but MLflow's pages was seen: that needs a browser, apt-get install chromium")


def progress_shown(plan_id: str) -> str:
    """Return the progress that `pipeline status` shows of the first stage."""
    jobs = json.loads(typed("status", plan_id, "--json").stdout)["jobs"]
    (job,) = [job for job in jobs if job["job"] == "train-base"]
    return str(job["progress"])


TOGETHER = """
name: together
out: runs
model: tiny
data: {train: shards, workers: 0}
evaluate_every: 1000
checkpoint: {every_steps: 1000, background: false}
stages: [{name: base, rate_weight: 1.8, steps: 8, batch: 2, crop: 64, lr: 1e-3}]
"""


def test_two_nodes_train_one_model_together(
    tmp_path: Path, pictures: Path, root: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    photos = sorted((pictures / "train").glob("*.jpg"))[:4]
    Path("photos.txt").write_text("".join(f"{photo}\n" for photo in photos))
    shard(["photos.txt"], "shards", Options(min_side=64))
    Path("alone.yaml").write_text(TOGETHER.replace("out: runs", "out: alone"))
    Path("together.yaml").write_text(TOGETHER)
    # The shards are there, made by no job of a plan.
    profile = re.sub("pictures: .*", "registry: {enabled: false}", PROFILE)
    profile = profile.replace("minutes: 10}", "minutes: 10}\n  train: {nodes: 2}")
    Path("two.yaml").write_text(profile)

    made = control.make_plan(Path("together.yaml"), Path("two.yaml"))
    assert control.schedule(made) == ["train-base"]
    # The script refuses to train with another number of processes than this.
    assert made.plan.job("train-base").words[-1] == "processes=2"
    run(tmp_path, "python", str(root / "recipes" / "train.py"), "alone.yaml")
    found = ended(made.plan, made.folder)["train-base"]

    assert found.state == State.DONE, found.reason
    assert found.nodes == "n[1-2]"
    log = "".join(control.logs(made.plan, made.folder, "train-base"))
    assert "8 of 8 steps" in log
    # Half of each batch on each node gives what the whole batch gives, but for rounding. The half
    # alone gives weights a hundred times as far away as is allowed here.
    together = load_file(Path("runs/base/model.safetensors"))
    alone = load_file(Path("alone/base/model.safetensors"))
    distance = sum(float((together[name] - alone[name]).square().sum()) for name in alone)
    size = sum(float(weight.square().sum()) for weight in alone.values())
    assert (distance / size) ** 0.5 < 1e-4
