"""Plans of small commands on this machine."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestration import control
from orchestration.errors import EngineError, OrchestrationError
from orchestration.profile import LocalProfile
from orchestration.states import State
from tests.cluster.tools import SMALL, ended, job, made_plan, states, wait_for

pytestmark = pytest.mark.slow  # processes, servers and codecs of their own


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def local(**fields: Any) -> LocalProfile:
    return LocalProfile(engine="local", **fields)


def gone(process: int) -> bool:
    """Whether a process is dead, reaped by its parent or not."""
    return not Path(f"/proc/{process}/exe").exists()


def test_plan_runs_in_order_and_ends_done(place: Path) -> None:
    jobs = [
        job("first", "echo one"),
        job("part", "test -e first.out; echo part $PART", ["first"], parts=3, done="false"),
        job("last", "test -e part.out", ["part"]),
    ]
    made = made_plan(place, local(), jobs)
    assert control.schedule(made) == ["first", "part", "last"]
    found = ended(made.plan, made.folder)

    assert {one.state for one in found.values()} == {State.DONE}
    assert found["part"].progress == "3 of 3 parts"
    log = "".join(control.logs(made.plan, made.folder, "part"))
    for part in range(3):
        assert f"==> part.{part}.log <==\npart {part}\n" in log
    assert control.retry(made.plan, made.folder) == []


def test_work_that_is_there_is_left_out(place: Path) -> None:
    (place / "first.out").touch()
    made = made_plan(place, local(), [job("first", "false"), job("last", "true", ["first"])])
    assert control.schedule(made) == ["last"]
    found = ended(made.plan, made.folder)
    assert {one.state for one in found.values()} == {State.DONE}


def test_failure_cancels_dependants_and_retry_runs_what_is_missing(place: Path) -> None:
    jobs = [
        job("good", "echo ran >> good.count"),
        job("bad", "echo 'the disk is full' >&2; test -e repaired", ["good"]),
        job("after", "true", ["bad"]),
    ]
    made = made_plan(place, local(), jobs)
    control.schedule(made)
    found = ended(made.plan, made.folder)

    assert found["bad"].state == State.FAILED
    assert found["bad"].reason == "exit code 1: the disk is full"
    assert (found["after"].state, found["after"].reason) == (State.CANCELLED, "bad failed")

    (place / "repaired").touch()
    assert control.retry(made.plan, made.folder) == ["bad", "after"]
    found = ended(made.plan, made.folder)
    assert {one.state for one in found.values()} == {State.DONE}
    assert (place / "good.count").read_text() == "ran\n"


def test_no_more_run_at_once_than_there_are_cores(place: Path) -> None:
    # Each job fails if it sees another one at work.
    alone = "mkdir busy && sleep 0.3 && rmdir busy"
    jobs = [job(f"j{number}", alone, resources=SMALL) for number in range(3)]
    made = made_plan(place, local(cpus=1), jobs)
    control.schedule(made)
    found = ended(made.plan, made.folder)
    assert {one.state for one in found.values()} == {State.DONE}


def test_independent_jobs_run_side_by_side(place: Path) -> None:
    # Each job ends only when the other has begun.
    jobs = [
        job(one, f"touch {one}.begun; while ! test -e {other}.begun; do sleep 0.05; done")
        for one, other in (("a", "b"), ("b", "a"))
    ]
    made = made_plan(place, local(cpus=2), jobs)
    control.schedule(made)
    found = ended(made.plan, made.folder)
    assert {one.state for one in found.values()} == {State.DONE}


def test_jobs_see_gpus_of_their_own(place: Path) -> None:
    wanted = SMALL.model_copy(update={"gpus": 2})
    show = "echo $CUDA_VISIBLE_DEVICES > $0.gpus"
    jobs = [job(name, show.replace("$0", name), resources=wanted) for name in ("a", "b")]
    made = made_plan(place, local(cpus=8, gpus=3), jobs)
    control.schedule(made)
    ended(made.plan, made.folder)
    assert {(place / f"{name}.gpus").read_text() for name in ("a", "b")} == {"0,1\n"}


def test_cancel_stops_everything_and_retry_goes_on(place: Path) -> None:
    slow = "echo $$ > pid; test -e quick || sleep 600"
    made = made_plan(place, local(), [job("slow", slow), job("after", "true", ["slow"])])
    control.schedule(made)
    wait_for((place / "pid").exists, "the start of the job")
    assert states(made.plan, made.folder) == {"slow": State.RUNNING, "after": State.WAITING}

    control.cancel(made.plan, made.folder)

    assert states(made.plan, made.folder) == {"slow": State.CANCELLED, "after": State.CANCELLED}
    assert gone(int((place / "pid").read_text()))
    (place / "quick").touch()
    assert control.retry(made.plan, made.folder) == ["slow", "after"]
    assert {one.state for one in ended(made.plan, made.folder).values()} == {State.DONE}


def test_cancel_waits_for_what_a_launcher_has_left_behind(place: Path) -> None:
    # Like `accelerate launch`: it holds no more than its own files open for what it starts, and
    # dies at once when it is told to, while training still writes its state.
    (place / "training.py").write_text(
        "import pathlib, signal, sys, time\n"
        "def stop(*_):\n    time.sleep(1); pathlib.Path('state').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('begun').touch()\n"
        "time.sleep(600)\n"
    )
    start = "import subprocess, sys; subprocess.run([sys.executable, 'training.py'])"
    launcher = job("train", "", words=(sys.executable, "-c", start))
    made = made_plan(place, local(), [launcher])
    control.schedule(made)
    wait_for((place / "begun").exists, "the start of training")

    control.cancel(made.plan, made.folder)

    assert (place / "state").exists()


@pytest.mark.parametrize(
    "said",
    [
        "subprocess.CalledProcessError: Command '['python']' died with <Signals.SIGKILL: 9>.",
        "  traceback : Signal 9 (SIGKILL) received by PID 30",
    ],
)
def test_a_killed_process_is_told(place: Path, said: str) -> None:
    shell = f"echo base: step 3 >&2; echo {shlex.quote(said)} >&2; false"
    made = made_plan(place, local(), [job("train", shell)])
    control.schedule(made)
    found = ended(made.plan, made.folder)["train"]
    assert found.reason == "exit code 1: its process was killed by SIGKILL (out of memory?)"


def test_plan_survives_the_death_of_everything(place: Path) -> None:
    """The machine loses power: nothing claims to run, and retry goes on with what is missing."""
    made = made_plan(
        place,
        local(),
        [job("a", "true"), job("b", "touch begun; test -e quick || sleep 600", ["a"])],
    )
    control.schedule(made)
    wait_for((place / "begun").exists, "the start of the job")
    supervisor = int((made.folder / "local" / "supervisor.pid").read_text())
    group = int((made.folder / "local" / "b.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    os.killpg(group, signal.SIGKILL)
    wait_for(lambda: gone(group) and gone(supervisor), "death")

    plan, folder = control.find(made.plan.id)
    found = ended(plan, folder)
    assert found["a"].state == State.DONE
    assert found["b"].state == State.FAILED
    assert "ended with this machine" in found["b"].reason
    (place / "quick").touch()
    assert control.retry(plan, folder) == ["b"]
    assert {one.state for one in ended(plan, folder).values()} == {State.DONE}


def test_job_that_outlived_its_supervisor_counts_as_running_and_can_be_cancelled(
    place: Path,
) -> None:
    made = made_plan(place, local(), [job("a", "touch begun; sleep 600"), job("b", "true", ["a"])])
    control.schedule(made)
    wait_for((place / "begun").exists, "the start of the job")
    supervisor = int((made.folder / "local" / "supervisor.pid").read_text())
    os.kill(supervisor, signal.SIGKILL)
    expected = {"a": State.RUNNING, "b": State.UNKNOWN}
    wait_for(lambda: states(made.plan, made.folder) == expected, "death")

    with pytest.raises(EngineError, match="cancel"):
        control.retry(made.plan, made.folder)
    control.cancel(made.plan, made.folder)
    assert states(made.plan, made.folder)["a"] == State.CANCELLED


def test_logs_follow_until_the_end(place: Path) -> None:
    talk = "echo one; while ! test -e go; do sleep 0.05; done; echo two"
    made = made_plan(place, local(), [job("talk", talk)])
    control.schedule(made)
    wait_for(lambda: (made.folder / "logs" / "talk.log").exists(), "the log")
    pieces = []
    for piece in control.logs(made.plan, made.folder, "talk", follow=True):
        pieces.append(piece)
        (place / "go").touch()
    assert "".join(pieces) == "one\ntwo\n"


def test_second_plan_in_the_same_folder_is_refused(place: Path) -> None:
    first = made_plan(place, local(), [job("slow", "sleep 600")])
    control.schedule(first)
    with pytest.raises(OrchestrationError, match=f"plan {first.plan.id} is at work"):
        control.schedule(made_plan(place, local(), [job("slow", "true")]))
    control.cancel(first.plan, first.folder)


def test_a_plan_of_the_same_id_is_refused_and_the_first_stays(place: Path) -> None:
    made = made_plan(place, local(), [job("a", "true")])
    control.schedule(made)
    with pytest.raises(OrchestrationError, match=f"there is a plan {made.plan.id} already"):
        control.schedule(made)
    assert {one.state for one in ended(made.plan, made.folder).values()} == {State.DONE}


def test_unknown_plan_or_job_is_one_sentence(place: Path) -> None:
    with pytest.raises(OrchestrationError, match="there is no plan nope"):
        control.find("nope")
    made = made_plan(place, local(), [job("a", "true")])
    control.schedule(made)
    ended(made.plan, made.folder)
    with pytest.raises(OrchestrationError, match="its jobs are: a"):
        next(control.logs(made.plan, made.folder, "b"))


def test_wait_reports_and_tells_success(place: Path) -> None:
    made = made_plan(place, local(), [job("a", "true"), job("b", "false", ["a"])])
    control.schedule(made)
    seen: list[int] = []
    assert not control.wait(made.plan, made.folder, lambda found: seen.append(len(found)))
    assert set(seen) == {2}
