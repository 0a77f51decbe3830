"""Plans on a real Slurm cluster under random faults: each ends with the weights it should have.

A batch of plans runs at once while nodes die, the controller restarts, jobs are preempted, plans
are cancelled and retried, and sbatch fails one time in five. Everything random comes from the
batch's seed. `pytest tests/cluster/test_faults.py --fault-batches 10` runs fifty plans, and
`--fault-seed N` other ones. With `--nightly` one plan of each batch also tracks its training on an
MLflow server, which is killed for up to a minute at a time.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from orchestration import control
from orchestration.errors import EngineError, UnansweredError
from orchestration.plan import Plan
from orchestration.profile import SlurmProfile
from orchestration.states import JobStatus, State
from pipeline.tracking import deliver
from pipeline.tracking.store import client, experiment_id
from tests.cluster.conftest import Cluster
from tests.cluster.tools import STEPS, TRAINER, expected_weights, job, made_plan, wait_for
from tests.patience import patience
from tests.tracking.servers import Server

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(3000)]

PLANS = 5
FAULTS = 3
LONGEST_OUTAGE = 60
# How often a person would type a command again before asking for help.
TRIES = 20

SBATCH = """#!/bin/bash
# One time in five: half of those before the job is taken, half when the answer is on its way.
calls=$(cat %(calls)s 2>/dev/null || echo %(seed)s); echo $((calls + 1)) >%(calls)s
draw=$(( calls * 7 %% 10 ))
[ $draw != 0 ] || { echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1; }
%(sbatch)s "$@" || exit
[ $draw != 1 ] || { echo "sbatch: error: Unable to contact slurm controller" >&2; exit 1; }
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first = metafunc.config.getoption("--fault-seed")
        batches = metafunc.config.getoption("--fault-batches")
        metafunc.parametrize("seed", range(first, first + batches))


@pytest.fixture
def unsteady(seed: int, tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make one sbatch in five fail."""
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    about = {"sbatch": shutil.which("sbatch"), "calls": tmp_path / "calls", "seed": seed}
    wrapper.write_text(SBATCH % about)
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=os.pathsep)


class Tracking:
    """A tracking server that the jobs use, and that can be away for a while."""

    def __init__(self, server: Server) -> None:
        """`server` may not answer yet."""
        self._server = server
        self._return: threading.Timer | None = None

    def fail(self, seconds: float) -> None:
        """Kill the server, and start it again after so many seconds, while other things happen."""
        if self._return is not None:
            self._return.cancel()
            self._return.join()
        self._server.kill()
        self._return = threading.Timer(seconds, self._server.launch)
        self._return.start()

    def wait(self) -> None:
        """Wait until the server answers."""
        if self._return is not None:
            self._return.join()
        wait_for(self._server.answers, "the tracking server")


@pytest.fixture
def tracking(
    request: pytest.FixtureRequest,
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Tracking | None]:
    """A tracking server, set in the shell that submits; None in a run that is not nightly."""
    if not request.config.getoption("--nightly"):
        yield None
        return
    folder = tmp_path / "server"
    folder.mkdir()
    store = f"sqlite:///{folder}/store.db"
    client(store).search_experiments()
    words = ["server", "--host", "0.0.0.0", "--workers", "1", "--backend-store-uri", store]
    server = Server([*words, "--artifacts-destination", str(folder / "files")], folder, "/health")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{cluster.address}:{server.port}")
    server.launch()
    known = Tracking(server)
    yield known
    known.wait()
    server.kill()


def again(act: Callable[[], object]) -> None:
    """Do it again, as a person would, when the scheduler fails or does not answer."""
    for _ in range(TRIES):
        try:
            act()
        except (EngineError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
            time.sleep(1)
        else:
            return
    act()


def scheduled(
    place: Path, profile: SlurmProfile, words: tuple[str, ...] = ("python3", "trainer.py")
) -> tuple[Plan, Path]:
    """Schedule training by `words` and what follows it; return the plan and its folder."""
    place.mkdir()
    (place / "trainer.py").write_text(TRAINER)
    train = job("train", "", kind="train", words=words)
    jobs = [train, job("evaluate", "true", ["train"]), job("register", "true", ["evaluate"])]
    for _ in range(TRIES):
        made = made_plan(place, profile, jobs)
        try:
            control.schedule(made)
        except EngineError:
            # Either nothing is left, or a plan that can be retried.
            if not made.folder.exists():
                continue
            again(partial(control.retry, made.plan, made.folder))
        return made.plan, made.folder
    raise AssertionError(f"no plan could be scheduled in {TRIES} tries")


def kill_a_node(cluster: Cluster, draw: random.Random, plan: Plan, folder: Path) -> None:
    node = draw.choice((1, 2))
    cluster.kill_node(node)
    time.sleep(draw.uniform(0, 5))
    cluster.start_node(node)


def restart_the_controller(cluster: Cluster, draw: random.Random, plan: Plan, folder: Path) -> None:
    cluster.restart_controller(draw.uniform(0, 5))


def preempt(cluster: Cluster, draw: random.Random, plan: Plan, folder: Path) -> None:
    words = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
    again(lambda: cluster.command("sbatch", *words, "--wrap=sleep 1"))


def cancel_and_retry(cluster: Cluster, draw: random.Random, plan: Plan, folder: Path) -> None:
    again(lambda: control.cancel(plan, folder))
    again(lambda: control.retry(plan, folder))


def lose_the_server(
    tracking: Tracking, cluster: Cluster, draw: random.Random, plan: Plan, folder: Path
) -> None:
    tracking.fail(draw.uniform(1, LONGEST_OUTAGE))


ALL_FAULTS = (kill_a_node, restart_the_controller, preempt, cancel_and_retry)


def test_plans_end_with_the_weights_of_undisturbed_ones(
    seed: int, tmp_path: Path, cluster: Cluster, unsteady: None, tracking: Tracking | None
) -> None:
    draw = random.Random(seed)
    profile = SlurmProfile(engine="slurm", partition="main", signal_seconds=60)
    plans = [scheduled(tmp_path / f"plan {number}", profile) for number in range(PLANS)]
    faults = [*ALL_FAULTS]
    if tracking is not None:
        words = (sys.executable, "trainer.py", "tracked")
        plans.append(scheduled(tmp_path / "tracked", profile, words))
        # As likely as all others together: three faults a batch are few for five kinds.
        faults += [partial(lose_the_server, tracking)] * len(ALL_FAULTS)

    for _ in range(FAULTS):
        time.sleep(draw.uniform(0, 4))
        fault = draw.choice(faults)
        fault(cluster, draw, *draw.choice(plans))

    for plan, folder in plans:
        finish(plan, folder)
        last, weights = map(int, Path(plan.workdir, "train.out").read_text().split())
        assert (last, weights) == (STEPS, expected_weights()[-1])
    if tracking is not None:
        tracking.wait()
        assert_tracked(Path(plans[-1][0].workdir, "run"))


def assert_tracked(run: Path) -> None:
    """The run in the folder `run` has each step's weights once, in the server's own words."""
    assert deliver(run, seconds=patience(60))
    where = client()
    (found,) = where.search_runs([experiment_id(where, "faults")])
    history = where.get_metric_history(found.info.run_id, "weights")
    logged = sorted((metric.step, metric.value) for metric in history)
    assert logged == list(enumerate(expected_weights(), start=1))
    assert found.info.status == "FINISHED"


def finish(plan: Plan, folder: Path) -> None:
    """Wait for the end; what has failed says why, and `retry` finishes it."""
    end = time.monotonic() + patience(600)
    while True:
        assert time.monotonic() < end, f"plan {plan.id} does not end"
        try:
            found = control.status(plan, folder)
        except UnansweredError:
            time.sleep(1)
            continue
        if all(one.state == State.DONE for one in found):
            return
        if not any(one.state.active for one in found):
            assert all(one.reason for one in found if one.state != State.DONE), told(found)
            again(lambda: control.retry(plan, folder))
        time.sleep(0.5)


def told(found: list[JobStatus]) -> str:
    return "; ".join(f"{one.name}: {one.state} ({one.reason})" for one in found)
