"""Plans of small commands on a real Slurm cluster of two nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration import control
from orchestration.errors import EngineError, OrchestrationError
from orchestration.plan import Job
from orchestration.profile import Resources, SlurmProfile
from orchestration.states import JobStatus, State
from tests.cluster.conftest import Cluster
from tests.cluster.tools import SMALL, ended, job, made_plan, states, wait_for
from tests.patience import patience

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(patience(1500))]

# Counts steps into a file, whole, and adds up what it did as a stand-in for weights. It goes on
# until it is asked to stop, and then ends with code 75; started again, it makes ten steps more.
TRAINER = """
import pathlib, signal, sys, time
stop = []
signal.signal(signal.SIGUSR1, lambda *_: stop.append(1))
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
state = pathlib.Path("state.txt")
resumed = state.exists()
step, weights = map(int, state.read_text().split()) if resumed else (0, 1)
print("starts at step", step, flush=True)
last = step + 10 if resumed else 10**9
while step < last:
    step, weights = step + 1, weights * 31 % 1000003 + step
    partial = pathlib.Path("state.part")
    partial.write_text(f"{step} {weights}")
    partial.replace(state)
    if stop:
        print("stops at step", step, flush=True)
        sys.exit(75)
    time.sleep(0.1)
pathlib.Path("train.out").write_text(f"{step} {weights}")
"""


@pytest.fixture
def place(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the stand-in for training; its name has all that needs quoting."""
    folder = tmp_path / "a lab's 100% place"
    folder.mkdir()
    (folder / "trainer.py").write_text(TRAINER)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def profile(cluster: Cluster) -> SlurmProfile:
    return SlurmProfile(engine="slurm", partition="main", signal_seconds=60)


def trainer(**more: Any) -> Job:
    return job("train", "", **{"kind": "train", "words": ("python3", "trainer.py"), **more})


def assert_every_step_was_made_once(place: Path) -> None:
    last, weights = map(int, (place / "train.out").read_text().split())
    expected = 1
    for step in range(last):
        expected = expected * 31 % 1000003 + step
    assert weights == expected


def test_plan_runs_in_order_and_ends_done(
    place: Path, profile: SlurmProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Jobs have what the shell has that submits, and nothing writes it down.
    password = "correct-horse-battery-staple"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    jobs = [
        job("first", "test ${#MLFLOW_TRACKING_PASSWORD} = 28 && echo one"),
        job("part", 'test -e first.out; echo "part $0"', ["first"], parts=3),
        job("last", "test $(ls part.out first.out | wc -l) = 2", ["part"]),
    ]
    made = made_plan(place, profile, jobs)

    assert control.schedule(made) == ["first", "part", "last"]
    found = ended(made.plan, made.folder)

    assert {one.state for one in found.values()} == {State.DONE}
    assert found["part"].progress == "3 of 3 parts"
    assert "".join(control.logs(made.plan, made.folder, "part")).count("==> part.") == 3
    assert control.retry(made.plan, made.folder) == []
    written = [path.read_text() for path in place.rglob("*") if path.is_file()]
    assert not any(password in text for text in written)


def test_failed_job_cancels_dependants_and_retry_runs_what_is_missing(
    place: Path, profile: SlurmProfile
) -> None:
    jobs = [
        job("good", "echo ran >> good.count"),
        job("bad", "echo 'the disk is full' >&2; test -e repaired"),
        job("after", "echo ran >> after.count", ["good", "bad"]),
    ]
    made = made_plan(place, profile, jobs)
    control.schedule(made)
    found = ended(made.plan, made.folder)

    assert found["bad"].state == State.FAILED
    assert found["bad"].reason == "exit code 1: the disk is full"
    assert found["after"].state == State.CANCELLED
    assert found["after"].reason == "bad failed"
    assert "the disk is full" in "".join(control.logs(made.plan, made.folder, "bad"))
    assert not (place / "after.count").exists()

    (place / "repaired").touch()
    assert control.retry(made.plan, made.folder) == ["bad", "after"]
    found = ended(made.plan, made.folder)

    assert {one.state for one in found.values()} == {State.DONE}
    assert (place / "good.count").read_text() == "ran\n"
    assert (place / "after.count").read_text() == "ran\n"


def test_cancel_leaves_nothing_running_and_retry_goes_on_at_once(
    place: Path, profile: SlurmProfile, cluster: Cluster
) -> None:
    made = made_plan(place, profile, [trainer(), job("after", "true", ["train"])])
    control.schedule(made)
    wait_for((place / "state.txt").exists, "the first step")

    control.cancel(made.plan, made.folder)

    assert cluster.command("squeue", "--noheader") == ""
    assert set(states(made.plan, made.folder).values()) == {State.CANCELLED}
    # The trainer was asked to stop and kept its state; it must not be queued again for that.
    log = "".join(control.logs(made.plan, made.folder, "train"))
    assert "queued again" not in log

    assert control.retry(made.plan, made.folder) == ["train", "after"]
    assert {one.state for one in ended(made.plan, made.folder).values()} == {State.DONE}
    assert_every_step_was_made_once(place)


# A minute is the shortest limit, and Slurm looks every 30 s whether the signal is due.
AT_THE_LIMIT = pytest.param(True, marks=pytest.mark.nightly, id="at the limit")


@pytest.mark.parametrize("at_the_limit", [pytest.param(False, id="at once"), AT_THE_LIMIT])
def test_time_limit_leads_to_checkpoint_requeue_and_resume(
    place: Path, profile: SlurmProfile, cluster: Cluster, at_the_limit: bool
) -> None:
    early = profile.model_copy(update={"signal_seconds": 55})
    minute = SMALL.model_copy(update={"minutes": 1})
    made = made_plan(place, early, [trainer(resources=minute), job("after", "true", ["train"])])
    assert "#SBATCH --signal=B:USR1@55" in made.scripts["train.sh"]
    control.schedule(made)
    if not at_the_limit:
        # What Slurm does then.
        wait_for((place / "state.txt").exists, "the first step")
        number = control.status(made.plan, made.folder)[0].engine_id
        cluster.command("scancel", "--batch", "--signal=USR1", number)
    found = ended(made.plan, made.folder)

    assert {one.state for one in found.values()} == {State.DONE}
    assert found["train"].restarts == 1
    log = "".join(control.logs(made.plan, made.folder, "train"))
    assert "stops at step" in log
    assert "queued again" in log
    assert_every_step_was_made_once(place)


@pytest.fixture(params=[0, 60], ids=["at once", "with grace"])
def grace(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[int]:
    """Seconds that a preempted job is given between SIGTERM and its end."""
    cluster.command("scontrol", "update", "PartitionName=main", f"GraceTime={request.param}")
    yield request.param
    cluster.command("scontrol", "update", "PartitionName=main", "GraceTime=0")


def test_preempted_job_comes_back_and_goes_on(
    place: Path, profile: SlurmProfile, cluster: Cluster, grace: int
) -> None:
    # A launcher turns every exit code into 1.
    launched = trainer(words=("bash", "-c", "python3 trainer.py || exit 1"))
    made = made_plan(place, profile, [launched, job("after", "true", ["train"])])
    control.schedule(made)
    wait_for((place / "state.txt").exists, "the first step")

    # A job of a partition with priority that wants both nodes for itself.
    words = ("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null")
    cluster.command("sbatch", *words, "--wrap=sleep 1")
    found = ended(made.plan, made.folder)

    assert {one.state for one in found.values()} == {State.DONE}
    assert found["train"].restarts == 1
    assert_every_step_was_made_once(place)


def test_signalled_again_and_again_gives_up_at_the_limit(
    place: Path, profile: SlurmProfile
) -> None:
    words = ("bash", "-c", "echo once more; exit 75")
    limited = profile.model_copy(update={"requeues": 1})
    made = made_plan(place, limited, [job("train", "", kind="train", words=words)])
    control.schedule(made)

    found = ended(made.plan, made.folder)["train"]

    assert found.state == State.FAILED
    assert found.restarts == 1
    assert found.reason == "exit code 75: once more"


def test_plan_is_scheduled_from_inside_another_job(
    place: Path, profile: SlurmProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What Slurm tells the processes of an interactive job, which hand it on to what they submit.
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1000")
    made = made_plan(place, profile, [trainer(words=("bash", "-c", "exit 75"))])
    control.schedule(made)

    wait_for(lambda: only(made).restarts > 0, "the requeue")
    control.cancel(made.plan, made.folder)
    ended(made.plan, made.folder)


def only(made: control.Scheduled) -> JobStatus:
    """Return the status of a plan's one job."""
    (status,) = control.status(made.plan, made.folder)
    return status


def test_two_nodes_meet(place: Path, profile: SlurmProfile) -> None:
    meet = "{rendezvous}"
    words = ("bash", "-c", 'echo "$(hostname) $*" >> met; echo', "words", meet)
    pair = job("train", "", kind="train", words=words)
    pair = pair.model_copy(update={"resources": SMALL.model_copy(update={"nodes": 2})})
    made = made_plan(place, profile, [pair])
    control.schedule(made)

    assert ended(made.plan, made.folder)["train"].state == State.DONE

    lines = sorted((place / "met").read_text().splitlines())
    assert [line.split()[0] for line in lines] == ["n1", "n2"]
    assert [line.split("--machine_rank ")[1].split()[0] for line in lines] == ["0", "1"]
    heads = {line.split("--main_process_ip ")[1] for line in lines}
    assert len(heads) == 1
    assert heads.pop().startswith("n1 --main_process_port 2")


def test_training_that_fails_on_one_of_two_nodes_has_failed(
    place: Path, profile: SlurmProfile
) -> None:
    # Slurm ends the other node's task, which must not be taken for a request to come back.
    words = ("bash", "-c", "[ $SLURM_NODEID = 1 ] && exit 1; exec sleep 600")
    pair = trainer(words=words)
    pair = pair.model_copy(update={"resources": SMALL.model_copy(update={"nodes": 2})})
    made = made_plan(place, profile, [pair])
    control.schedule(made)

    found = ended(made.plan, made.folder)["train"]

    assert (found.state, found.restarts) == (State.FAILED, 0)


def test_refused_job_leaves_no_others_behind(
    place: Path, profile: SlurmProfile, cluster: Cluster
) -> None:
    # More memory than any node has: sbatch refuses the second job when the first is in.
    huge = Resources(cpus=1, memory="9000G", minutes=5)
    jobs = [job("first", "sleep 60"), job("second", "true", ["first"], resources=huge)]
    made = made_plan(place, profile, jobs)

    with pytest.raises(EngineError, match=r"sbatch failed: .*[Mm]emory"):
        control.schedule(made)

    ended(made.plan, made.folder)
    assert cluster.command("squeue", "--noheader") == ""


def test_second_plan_in_the_same_folder_is_refused(place: Path, profile: SlurmProfile) -> None:
    first = made_plan(place, profile, [job("slow", "sleep 60")])
    control.schedule(first)

    with pytest.raises(OrchestrationError, match=f"plan {first.plan.id} is at work"):
        control.schedule(made_plan(place, profile, [job("slow", "sleep 60")]))

    control.cancel(first.plan, first.folder)
    ended(first.plan, first.folder)


def test_plan_is_found_by_its_id_and_read_from_accounting(
    place: Path,
    profile: SlurmProfile,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = made_plan(place, profile, [job("good", "true"), job("bad", "false", ["good"])])
    control.schedule(made)
    ended(made.plan, made.folder)

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    plan, folder = control.find(made.plan.id)
    assert (plan, folder) == (made.plan, made.folder)

    # Hours later the queue has forgotten: accounting, which lags by seconds, tells the same.
    (elsewhere / "squeue").write_text("#!/bin/sh\nexit 0\n")
    (elsewhere / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(elsewhere), prepend=os.pathsep)
    # Remove the output, so that only accounting can tell that the job was done.
    (place / "good.out").unlink()
    expected = {"good": State.DONE, "bad": State.FAILED}
    wait_for(lambda: states(plan, folder) == expected, "accounting")
