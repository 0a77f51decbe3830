"""Plans on Ray without a cluster: what its Jobs API is asked, and what its answers mean."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestration import control
from orchestration.engines import ray_api, ray_engine
from orchestration.engines.ray_notes import Note, read_note, write_note
from orchestration.engines.ray_states import Known, statuses
from orchestration.errors import EngineError, OrchestrationError, UnansweredError
from orchestration.load import profile_from
from orchestration.plan import Plan
from orchestration.profile import RayProfile
from orchestration.sites import findings
from orchestration.states import State
from recipes.launching.command import RENDEZVOUS
from tests.cluster.tools import SMALL, job, made_plan
from tests.patience import patience, wait_for


class Head:
    """The Jobs API of a cluster that starts nothing."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.refusals: list[tuple[int, str]] = []
        self.headers: dict[str, str] = {}
        head = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                head.headers = dict(self.headers)
                answers = {"version": {"ray_version": head.version}, "nodes": head.nodes}
                asked = self.path.partition("?")[0].rpartition("/")[2]
                self.answer(200, json.dumps(answers.get(asked, head.jobs)))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.path.endswith("/stop"):
                    head.stop(self.path.split("/")[-2])
                    self.answer(200, "{}")
                elif head.refusals:
                    self.answer(*head.refusals.pop(0))
                else:
                    head.take(json.loads(body))
                    self.answer(200, "{}")

            def answer(self, code: int, text: str) -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *words: Any) -> None:
                return

        self.version = "2.60.0"
        self.nodes: dict[str, Any] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, asked: dict[str, Any]) -> None:
        self.jobs.append({**asked, "status": "RUNNING", "start_time": len(self.jobs)})

    def stop(self, name: str) -> None:
        for one in self.jobs:
            if one["submission_id"] == name and one["status"] in ray_api.ACTIVE:
                one["status"] = "STOPPED"


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.setattr(ray_api, "BUSY_PAUSES", (0.0, 0.0, None))
    monkeypatch.setattr(ray_engine, "SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.60.0")
    found = Head()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def made(head: Head, tmp_path: Path) -> control.Scheduled:
    wide = SMALL.model_copy(update={"nodes": 2})
    jobs = [
        job("part", "true", parts=2),
        job("train", "true", ["part"], kind="train"),
        job("wide", "", ["train"], words=("echo", RENDEZVOUS), kind="train", resources=wide),
    ]
    return made_plan(tmp_path, RayProfile(engine="ray", address=head.address), jobs)


def states_of(made: control.Scheduled) -> dict[str, tuple[State, str]]:
    return {one.name: (one.state, one.reason) for one in control.status(made.plan, made.folder)}


def record(made: control.Scheduled, name: str, status: str, **more: Any) -> dict[str, Any]:
    about = {"plan": made.plan.id, "job": name, "turn": "0"}
    fields = {"submission_id": f"{name}-0", "status": status, "metadata": about, "start_time": 9}
    return {**fields, **more}


def test_submitting_hands_over_the_supervisor_once(head: Head, made: control.Scheduled) -> None:
    assert control.schedule(made) == ["part", "train", "wide"]
    (job,) = head.jobs
    assert job["entrypoint"].endswith(f"ray_supervisor {made.folder}")
    assert job["metadata"]["plan"] == made.plan.id
    assert job["runtime_env"] == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}}
    assert states_of(made)["part"][0] == State.QUEUED
    assert states_of(made)["train"] == (State.WAITING, "for part")
    assert control.retry(made.plan, made.folder) == []


def test_a_head_that_starts_is_asked_again(head: Head, made: control.Scheduled) -> None:
    busy = "No available agent to submit job, please try again later."
    head.refusals = [(500, busy), (500, busy)]
    control.schedule(made)
    assert len(head.jobs) == 1


def test_what_the_head_refuses_leaves_nothing(head: Head, made: control.Scheduled) -> None:
    head.refusals = [(400, "Traceback ...\nValueError: no such thing")]
    with pytest.raises(EngineError, match="answers 400: ValueError: no such thing"):
        control.schedule(made)
    assert not made.folder.exists()


def test_another_version_of_ray_is_refused_at_once(head: Head, made: control.Scheduled) -> None:
    head.version = "2.44.0"
    with pytest.raises(EngineError, match=r"runs Ray 2\.44\.0.*has Ray 2\.60\.0"):
        control.schedule(made)
    assert head.jobs == []


def test_doctor_holds_the_cluster_against_the_profile(head: Head) -> None:
    has = {"CPU": 8.0, "memory": 16.0 * 2**30, "node:10.0.0.1": 1.0}
    nodes = [{"state": "ALIVE", "resources_total": has}, {"state": "DEAD"}]
    head.nodes = {"data": {"result": {"result": nodes}}}
    asked = {"train": {"cpus": 8, "memory": "16G"}, "shard": {"cpus": 9}, "evaluate": {"gpus": 1}}
    profile = profile_from({"engine": "ray", "address": head.address, "resources": asked}, "p")
    found = {what: (state, detail) for state, what, detail in findings(profile)}
    assert found["cluster"] == ("ok", f"Ray 2.60.0 at {head.address}")
    assert found["nodes"][1].startswith("1 ")
    assert {what for what in found if what.startswith("res")} == {
        "resources.shard",
        "resources.evaluate",
    }
    head.nodes = {"result": False}
    assert ("missing", "cluster") in {(state, what) for state, what, _ in findings(profile)}


def test_a_head_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    profile = RayProfile(engine="ray", address="http://127.0.0.1:1")
    made = made_plan(tmp_path, profile, [job("one", "true")])
    with pytest.raises(UnansweredError, match=r"no Ray cluster answers at http://127\.0\.0\.1:1"):
        control.schedule(made)
    assert not made.folder.exists()


def test_credentials_go_as_rays_own_command_sends_them(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abc")
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"Cookie": "a=b"}')
    ray_api.JobsApi(head.address).jobs()
    assert (head.headers["Authorization"], head.headers["Cookie"]) == ("Bearer abc", "a=b")


def test_cancel_stops_what_runs_and_retry_is_a_new_turn(
    head: Head, made: control.Scheduled
) -> None:
    control.schedule(made)
    head.jobs.append(record(made, "part", "RUNNING"))
    assert control.cancel(made.plan, made.folder) == ["part", "train", "wide"]
    assert {one["status"] for one in head.jobs} == {"STOPPED"}
    assert {state for state, _ in states_of(made).values()} == {State.CANCELLED}
    assert control.retry(made.plan, made.folder) == ["part", "train", "wide"]
    assert head.jobs[-1]["submission_id"].endswith("supervisor-1")
    # What an earlier turn says of a job is not what it is now.
    assert states_of(made)["part"][0] == State.QUEUED


@pytest.mark.parametrize(
    ("status", "note", "expected"),
    [
        (None, None, (State.QUEUED, "for the plan's supervisor to submit it")),
        ("PENDING", None, (State.QUEUED, "its driver starts")),
        ("FAILED", None, (State.FAILED, "its driver ended: no module")),
        ("RUNNING", Note(State.QUEUED, "for a node"), (State.QUEUED, "for a node")),
        ("RUNNING", Note(State.RUNNING), (State.RUNNING, "")),
        ("SUCCEEDED", Note(State.DONE), (State.DONE, "")),
        ("FAILED", Note(State.RUNNING), (State.FAILED, "its driver ended: no module")),
        ("FAILED", Note(State.FAILED, "exit code 3"), (State.FAILED, "exit code 3")),
        ("STOPPED", Note(State.RUNNING), (State.CANCELLED, "stopped")),
        (None, Note(State.RUNNING), (State.FAILED, "its cluster has ended, or forgotten it")),
        (None, Note(State.DONE), (State.DONE, "")),
    ],
)
def test_states(
    made: control.Scheduled,
    tmp_path: Path,
    status: str | None,
    note: Note | None,
    expected: tuple[State, str],
) -> None:
    records = [record(made, "supervisor", "RUNNING")]
    if status:
        records.append(record(made, "train", status, message="Traceback\nno module"))
    if note:
        write_note(tmp_path, "train", note)
    for label in ("part.0", "part.1"):
        write_note(tmp_path, label, Note(State.DONE))
    found = statuses(made.plan, tmp_path, Known.of(records))
    assert (found["train"].state, found["train"].reason) == expected


def test_a_supervisor_that_fails_says_why(made: control.Scheduled, tmp_path: Path) -> None:
    failed = record(made, "supervisor", "FAILED", message="bad\nno such environment")
    found = statuses(made.plan, tmp_path, Known.of([failed]))
    reason = "the plan's supervisor ended: no such environment"
    assert (found["part"].state, found["part"].reason) == (State.FAILED, reason)


def test_addresses_of_other_protocols_and_passwords_are_refused() -> None:
    for address in ("ray://head:10001", "head:6379", "http://me:secret@head:8265"):
        with pytest.raises(ValueError, match="address"):
            RayProfile(engine="ray", address=address)


def test_scripts_stop_for_a_checkpoint_and_meet(made: control.Scheduled) -> None:
    train, wide = made.scripts["train.sh"], made.scripts["wide.sh"]
    assert "trap stop TERM USR1" in train
    assert "--machine_rank" not in train
    assert '--machine_rank "$NODE" --main_process_ip "$HEAD" --main_process_port "$PORT"' in wide
    assert "trap" not in made.scripts["part.sh"]


# --- what runs on a node

NODE = [sys.executable, "-P", "-m", "orchestration.engines.ray_node"]


def started(folder: Path, script: str, kind: str) -> subprocess.Popen[bytes]:
    (folder / "job.sh").write_text(script)
    words = [*NODE, str(folder / "job.sh"), kind, "60"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize("kind", ["train", "other"])
def test_everything_ends_with_the_worker(tmp_path: Path, kind: str) -> None:
    """What a launcher has started in sessions of its own, deaf to signals, too."""
    deaf = 'trap "" TERM USR1 HUP; echo $$ > deaf; while :; do sleep 0.1; done'
    (tmp_path / "deaf.sh").write_text(deaf)
    node = started(tmp_path, f"cd {tmp_path}; (setsid bash deaf.sh &); sleep 600", kind)
    wait_for(lambda: any(path.read_text() for path in tmp_path.glob("deaf")), "a start")
    process = psutil.Process(int((tmp_path / "deaf").read_text()))
    assert node.stdin is not None
    node.stdin.close()
    assert node.wait(patience(60)) == 128 + signal.SIGKILL
    wait_for(lambda: not process.is_running(), "the end of what the script had started")


def test_training_is_asked_and_exits_as_it_likes(tmp_path: Path) -> None:
    script = f"cd {tmp_path}; trap 'echo kept >kept; exit 75' TERM; touch begun; sleep 600 & wait"
    node = started(tmp_path, script, "train")
    wait_for((tmp_path / "begun").exists, "a start")
    assert node.stdin is not None
    node.stdin.write(b"stop\n")
    node.stdin.flush()
    assert node.wait(patience(60)) == 75
    assert (tmp_path / "kept").exists()


def test_exit_codes_and_output_are_the_scripts(tmp_path: Path) -> None:
    node = started(tmp_path, "echo out; exit 3", "other")
    assert node.communicate(timeout=patience(60))[0] == b"out\n"
    assert node.returncode == 3


# --- the supervisor


class Cluster:
    """In place of the engine: a job is over as soon as it is submitted."""

    def __init__(self, plan: Plan, spool: Path, failing: str = "") -> None:
        self.plan, self.spool, self.failing = plan, spool, failing
        self.begun: list[str] = []

    def turns(self, plan: Plan) -> int:
        return 1

    def start(self, plan: Plan, folder: Path, name: str, turn: int) -> None:
        self.begun.append(name)
        state = State.FAILED if name == self.failing else State.DONE
        for label in plan.job(name).labels:
            write_note(self.spool, label, Note(state))

    def statuses(self, plan: Plan, folder: Path) -> Any:
        about = {"plan": plan.id, "job": "supervisor", "turn": "0"}
        return statuses(plan, self.spool, Known.of([{"metadata": about, "status": "RUNNING"}]))


@pytest.mark.parametrize(
    ("failing", "begun"),
    [("", ["part", "train", "wide"]), ("part", ["part"]), ("train", ["part", "train"])],
)
def test_the_supervisor_starts_jobs_in_their_order(
    made: control.Scheduled, monkeypatch: pytest.MonkeyPatch, failing: str, begun: list[str]
) -> None:
    from orchestration.engines import ray_supervisor

    monkeypatch.setattr(ray_supervisor, "POLL_SECONDS", 0.0)
    spool = made.folder / "ray"
    spool.mkdir(parents=True)
    cluster: Any = Cluster(made.plan, spool, failing)
    names = [one.name for one in made.plan.jobs]
    supervisor = ray_supervisor.Supervisor(made.plan, made.folder, cluster, names)
    assert supervisor.run() == (not failing)
    assert cluster.begun == begun


def test_the_supervisor_leaves_out_what_is_done(
    made: control.Scheduled, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestration.engines import ray_supervisor

    monkeypatch.setattr(ray_supervisor, "POLL_SECONDS", 0.0)
    spool = made.folder / "ray"
    spool.mkdir(parents=True)
    (Path(made.plan.workdir) / "part.out").touch()
    cluster: Any = Cluster(made.plan, spool)
    names = [one.name for one in made.plan.jobs]
    assert ray_supervisor.Supervisor(made.plan, made.folder, cluster, names).run()
    assert cluster.begun == ["train", "wide"]
    assert read_note(spool, "part.1") == Note(State.DONE)


def test_a_profile_with_mistakes_is_told_of_at_once(tmp_path: Path) -> None:
    from orchestration.load import profile_from

    content = {"engine": "ray", "adress": "x", "grace_seconds": 0, "ray_resources": {"a": 0}}
    with pytest.raises(OrchestrationError) as caught:
        profile_from(content, "ray.yaml")
    for words in ("adress", "did you mean address?", "grace_seconds", "ray_resources.a"):
        assert words in str(caught.value)
