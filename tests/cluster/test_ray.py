"""Plans on a real Ray cluster: a head and two nodes on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestration import control
from orchestration.profile import RayProfile, Resources
from orchestration.states import State
from recipes.launching.command import RENDEZVOUS
from tests.cluster.tools import STEPS, TRAINER, ended, expected_weights, job, made_plan
from tests.patience import patience, wait_for

pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(3000)]

# All nodes are this machine: little memory, and nothing that looks for the world outside.
OPTIONS = ["--object-store-memory=80000000", "--node-ip-address=127.0.0.1"]


class RayCluster:
    """A head without cores, and nodes with two each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as one, socket.socket() as other:
            for free in (one, other):
                free.bind(("127.0.0.1", 0))
            self.port, self.dashboard = one.getsockname()[1], other.getsockname()[1]

    def start_head(self) -> None:
        ports = [f"--port={self.port}", f"--dashboard-port={self.dashboard}"]
        self._start("--head", "--num-cpus=0", f"--temp-dir={self.folder}", *ports)

    def start_node(self) -> None:
        self._start(f"--address=127.0.0.1:{self.port}", "--num-cpus=2")

    def _start(self, *options: str) -> None:
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "300"}
        with (self.folder / "start.log").open("a") as log:
            subprocess.run(
                [f"{sys.prefix}/bin/ray", "start", *OPTIONS, *options],
                check=True,
                env={**os.environ, **quiet},
                stdout=log,
                stderr=log,
                timeout=patience(300),
            )

    def stop(self) -> None:
        """Kill what belongs to this cluster alone; `ray stop` would kill every other one too."""
        ours = str(self.folder)
        for process in psutil.process_iter(["cmdline"]):
            if any(ours in word for word in process.info["cmdline"] or []):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    # Not pytest's own folder: names of sockets are short.
    cluster = RayCluster(Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")))
    try:
        cluster.start_head()
        cluster.start_node()
        cluster.start_node()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def profile(ray_cluster: RayCluster) -> RayProfile:
    address = f"http://127.0.0.1:{ray_cluster.dashboard}"
    return RayProfile(engine="ray", address=address, grace_seconds=60)


def raylet_above(process: int) -> psutil.Process:
    """Return the node's own process, among the parents of what runs on it."""
    return next(one for one in psutil.Process(process).parents() if one.name() == "raylet")


def test_plan_survives_the_death_of_a_node(
    ray_cluster: RayCluster, profile: RayProfile, tmp_path: Path
) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    train = ("bash", "-c", "echo $$ > pid; exec python3 trainer.py")
    meet = ("bash", "-c", 'echo "$@"; touch both.out', "launcher", RENDEZVOUS)
    jobs = [
        job("part", "echo part $PART", parts=3, done="false"),
        job("train", "", ["part"], kind="train", words=train),
        job("both", "", ["train"], words=meet, resources=Resources(cpus=1, nodes=2)),
        job("bad", "echo 'the disk is full' >&2; false", ["part"]),
        job("after", "true", ["bad"]),
    ]
    made = made_plan(tmp_path, profile, jobs)
    plan, folder = made.plan, made.folder
    assert control.schedule(made) == [one.name for one in jobs]
    wait_for((tmp_path / "state.txt").exists, "the first step of training")
    trainer = psutil.Process(int((tmp_path / "pid").read_text()))
    raylet_above(trainer.pid).kill()
    wait_for(lambda: not trainer.is_running(), "the end of what ran on the dead node")
    ray_cluster.start_node()

    found = ended(plan, folder)
    assert found["train"].state == State.DONE, found
    assert found["train"].restarts == 1
    last, weights = map(int, (tmp_path / "train.out").read_text().split())
    assert (last, weights) == (STEPS, expected_weights()[-1])
    assert found["part"].progress == "3 of 3 parts"
    assert "==> part.2.log <==\npart 2\n" in "".join(control.logs(plan, folder, "part"))
    log = "".join(control.logs(plan, folder, "both"))
    assert log.count("--rdzv_backend c10d") == 2
    assert {f"--machine_rank {node} " in log for node in (0, 1)} == {True}
    assert (found["bad"].state, found["bad"].reason) == (
        State.FAILED,
        "exit code 1: the disk is full",
    )
    assert (found["after"].state, found["after"].reason) == (State.CANCELLED, "bad failed")


def test_cancelled_training_keeps_its_state_and_retry_goes_on(
    profile: RayProfile, tmp_path: Path, ray_cluster: RayCluster
) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    train = job("train", "", kind="train", words=("python3", "trainer.py"))
    made = made_plan(tmp_path, profile, [train, job("after", "true", ["train"])])
    plan, folder = made.plan, made.folder
    control.schedule(made)
    wait_for((tmp_path / "state.txt").exists, "the first step of training")
    assert control.cancel(plan, folder) == ["train", "after"]
    found = {one.name: one for one in control.status(plan, folder)}
    assert {one.state for one in found.values()} == {State.CANCELLED}
    assert found["train"].reason.startswith("cancelled by ")
    assert 0 < int((tmp_path / "state.txt").read_text().split()[0]) < STEPS

    assert control.retry(plan, folder) == ["train", "after"]
    assert {one.state for one in ended(plan, folder).values()} == {State.DONE}
    last, weights = map(int, (tmp_path / "train.out").read_text().split())
    assert (last, weights) == (STEPS, expected_weights()[-1])
