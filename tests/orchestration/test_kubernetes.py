"""Manifests against the schemas of Kubernetes and of JobSet."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from orchestration import control
from orchestration.build import build_jobs
from orchestration.engines.kubernetes import job_status
from orchestration.engines.manifest import MOST_NEEDS, jobset
from orchestration.load import load_profile, profile_from
from orchestration.plan import Plan
from orchestration.profile import KubernetesProfile
from orchestration.sites import findings
from orchestration.states import State
from orchestration.store import new_id
from recipes.config.schema import Recipe
from tests.patience import patience

# A DNS label, which the names of pods with their indices must fit.
LONGEST = 63
VERSION = "1.31"


def manifest_of(recipe: Path, profile: Path) -> dict[str, Any]:
    made = control.make_plan(recipe, profile)
    (text,) = made.scripts.values()
    content: dict[str, Any] = json.loads(text)
    return content


def jobs_in(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in manifest["spec"]["replicatedJobs"]:
        head = {"apiVersion": "batch/v1", "kind": "Job"}
        metadata = {**entry["template"].get("metadata", {}), "name": entry["name"]}
        yield {**head, "metadata": metadata, "spec": entry["template"]["spec"]}


@pytest.fixture
def several_nodes(recipe: Path, profiles: Path, tmp_path: Path) -> dict[str, Any]:
    """The manifest of a plan with a stage on two nodes and more rates than JobSet can wait for."""
    weights = "[0.3, 0.85, 1.8, 3.5, 7, 15]"
    recipe.write_text(recipe.read_text().replace("[0.3, 1.8]", weights))
    text = (profiles / "kubernetes.yaml").read_text().replace("nodes: 1", "nodes: 2")
    text = text.replace("pod: {}", "pod: {tolerations: [{key: gpu, operator: Exists}]}")
    (tmp_path / "k.yaml").write_text(text + "secret: mlflow\n")
    return manifest_of(recipe, tmp_path / "k.yaml")


def test_jobs_fit_the_schema_of_kubernetes(several_nodes: dict[str, Any]) -> None:
    jobs = list(jobs_in(several_nodes))
    assert len(jobs) > 16
    for job in jobs:
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_set_fits_the_schema_of_jobset(several_nodes: dict[str, Any]) -> None:
    read = JobsetV1alpha2JobSet.from_dict(several_nodes)
    assert read is not None
    # What the schema does not know would be missing here.
    assert read.to_dict() == several_nodes


def test_schema_would_notice_a_mistake(several_nodes: dict[str, Any]) -> None:
    job = next(jobs_in(several_nodes))
    job["spec"]["completionz"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSION, strict=True)


def test_jobs_wait_for_what_they_need(several_nodes: dict[str, Any]) -> None:
    entries = several_nodes["spec"]["replicatedJobs"]
    names = [entry["name"] for entry in entries]
    assert len(set(names)) == len(names)
    waits = {e["name"]: [w["name"] for w in e.get("dependsOn", [])] for e in entries}
    for index, name in enumerate(names):
        assert set(waits[name]) <= set(names[:index])
        assert len(waits[name]) <= MOST_NEEDS
        assert len(f"{several_nodes['metadata']['name']}-{name}-0-10") <= LONGEST

    def before(name: str) -> set[str]:
        return {name}.union(*(before(need) for need in waits[name]))

    (evaluate,) = [name for name in names if re.fullmatch(r"evaluate-mse-[0-9]+", name)]
    trained = {name for name in names if name.startswith("train-mse")}
    assert len(trained) == 6
    assert trained <= before(evaluate)


def test_sets_of_a_recipe_with_a_long_name_have_names_of_their_own(
    recipe: Path, profiles: Path
) -> None:
    name = "2026-imagenet-with-a-very-long-name-that-goes-on-and-on-and-on"
    long = recipe.read_text().replace("tiny", name, 1).replace("base", "base-with-a-long-name-too")
    recipe.write_text(long)
    made = [manifest_of(recipe, profiles / "kubernetes.yaml") for _ in range(2)]
    names = [manifest["metadata"]["name"] for manifest in made]
    assert len(set(names)) == 2
    assert all(re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) for name in names)
    label = made[0]["metadata"]["labels"]["cca-pipeline/plan"]
    pods = [f"{names[0]}-{job['metadata']['name']}-0-100" for job in jobs_in(made[0])]
    assert max(map(len, [label, *pods])) <= LONGEST


@settings(max_examples=25, deadline=None)
@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,70}", fullmatch=True),
    stages=st.lists(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", fullmatch=True),
        min_size=1,
        max_size=3,
        unique=True,
    ),
    nodes=st.sampled_from([1, 16, 2000]),
    rates=st.integers(1, 6),
    turn=st.sampled_from([0, 12]),
)
def test_names_pass_the_rules_of_jobset(
    profiles: Path, name: str, stages: list[str], nodes: int, rates: int, turn: int
) -> None:
    """Names of pods as JobSet's webhook checks them: a DNS label with five random characters."""
    weights = [0.3, 0.85, 1.8, 3.5, 7, 15][:rates]
    described = [{"name": stage, "rate_weight": weights, "steps": 1} for stage in stages]
    data = {"train": "shards", "validation": "held-out"}
    recipe = Recipe.model_validate({"name": name, "out": "o", "data": data, "stages": described})
    content = yaml.safe_load((profiles / "kubernetes.yaml").read_text())
    content["resources"]["train"] = {"nodes": nodes}
    profile = profile_from(content, "k.yaml")
    assert isinstance(profile, KubernetesProfile)
    jobs = build_jobs(recipe, profile, "r.yaml")
    plan = Plan(
        id=new_id(name), created="", recipe="r.yaml", out="o", workdir="/d", profile={}, jobs=jobs
    )
    made = jobset(plan, profile, [job.name for job in jobs], turn)

    set_name = made["metadata"]["name"]
    label = re.compile("[a-z]([-a-z0-9]*[a-z0-9])?")
    value = re.compile("(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
    entries = made["spec"]["replicatedJobs"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    assert label.fullmatch(set_name)
    for entry in entries:
        last = entry["template"]["spec"]["completions"] - 1
        pod = f"{set_name}-{entry['name']}-0-{last}-abcde"
        assert label.fullmatch(pod), pod
        assert len(pod) <= LONGEST, pod
    named = {}
    for job in jobs_in(made):
        for part in (job, job["spec"]["template"]):
            for text in part["metadata"].get("labels", {}).values():
                assert len(text) <= LONGEST
                assert value.fullmatch(text), text
        if "annotations" in job["metadata"]:
            full = job["metadata"]["annotations"]["cca-pipeline/job-name"]
            named[job["metadata"]["labels"]["cca-pipeline/job"]] = full
    assert sorted(named.values()) == sorted(job.name for job in jobs)


def test_pods_of_one_training_meet_and_start_again_together(several_nodes: dict[str, Any]) -> None:
    jobs = {job["metadata"]["name"]: job["spec"] for job in jobs_in(several_nodes)}
    train = next(spec for name, spec in jobs.items() if name.startswith("train-base"))
    (container,) = train["template"]["spec"]["containers"]
    script = container["command"][2]
    head = f"{several_nodes['metadata']['name']}-train-base-2-0-0"
    assert (train["completions"], train["parallelism"]) == (2, 2)
    assert f"--main_process_ip {head}.{several_nodes['metadata']['name']} " in script
    assert '--machine_rank "$JOB_COMPLETION_INDEX"' in script
    assert {rule["action"] for rule in train["podFailurePolicy"]["rules"]} == {"FailJob"}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    tolerations = train["template"]["spec"]["tolerations"]
    assert tolerations == [{"key": "gpu", "operator": "Exists"}]
    assert container["envFrom"] == [{"secretRef": {"name": "mlflow"}}]
    shard = next(spec for name, spec in jobs.items() if name.startswith("shard-0"))
    assert shard["completions"] == 8
    for spec in jobs.values():
        text = spec["template"]["spec"]["containers"][0]["command"][2]
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


RANK = """
import pathlib, signal, sys, time
def stop(*_):
    print("kept", flush=True)
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
pathlib.Path(f"started-{sys.argv[1]}").touch()
time.sleep(600)
"""
# Gives each rank a session of its own and turns every exit code into 1, as launchers do.
LAUNCHER = """
import subprocess, sys
ranks = [
    subprocess.Popen([sys.executable, "rank.py", str(rank)], start_new_session=True)
    for rank in range(2)
]
sys.exit(any([rank.wait() for rank in ranks]))
"""


def test_stopped_pod_says_again(recipe: Path, profiles: Path, tmp_path: Path) -> None:
    """Run a pod's script here: told to go, its ranks checkpoint, and the pod exits with 75."""
    from orchestration.script import AGAIN, stoppable

    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    text = stoppable(f"{shlex.quote(sys.executable)} launcher.py")
    pod = subprocess.Popen(["bash", "-c", text], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while len([*tmp_path.glob("started-*")]) < 2:
        assert pod.poll() is None
    pod.terminate()
    assert pod.communicate(timeout=patience(300))[0] == "kept\nkept\n"
    assert pod.returncode == AGAIN


def test_without_a_context_the_manifest_is_written_and_not_applied(
    recipe: Path, profiles: Path, tmp_path: Path
) -> None:
    made = control.make_plan(recipe, profiles / "kubernetes.yaml")
    control.schedule(made)
    written = json.loads((made.folder / "jobset-0.json").read_text())
    assert written["kind"] == "JobSet"
    plan, folder = control.find(made.plan.id)
    with pytest.raises(RuntimeError, match="names no context"):
        control.status(plan, folder)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, State.QUEUED),
        ({"active": 1, "ready": 0}, State.QUEUED),
        ({"active": 1, "ready": 1}, State.RUNNING),
        ({"conditions": [{"type": "Complete", "status": "True"}]}, State.DONE),
        (
            {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimit"}]},
            State.FAILED,
        ),
        ({"conditions": [{"type": "Suspended", "status": "True"}]}, State.CANCELLED),
        ({"active": 1, "conditions": [{"type": "Suspended", "status": "False"}]}, State.QUEUED),
    ],
)
def test_status_of_a_job_object(
    recipe: Path, profiles: Path, status: dict[str, Any], state: State
) -> None:
    job = control.make_plan(recipe, profiles / "kubernetes.yaml").plan.job("train-base")
    found = {"metadata": {"name": "x-train-base-0"}, "status": status}
    assert job_status(job, found).state == state


KUBECTL = """#!/bin/bash
echo "$*" >> calls
case "$*" in
  *"get jobsets"*) cat jobsets.json;;
  *"get jobs"*) cat jobs.json;;
  *patch*) touch patched;;
  *"get pods"*)
    [ ! -e gone ] || { echo '{"items": []}'; exit; }
    [ ! -e patched ] || touch gone
    echo '{"items": [{"metadata": {"name": "the-pod"}, "status": {"phase": "Running"}}]}';;
  *logs*) echo 'train: the shards are gone';;
esac
"""


def stand_in(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `script` what is found as kubectl."""
    (folder / "kubectl").write_text(script)
    (folder / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_states_logs_and_cancel_go_through_kubectl(
    recipe: Path, profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for kubectl notes what it is asked and answers as a cluster would."""
    stand_in(KUBECTL, tmp_path, monkeypatch)
    text = (profiles / "kubernetes.yaml").read_text() + "context: lab\n"
    (tmp_path / "k.yaml").write_text(text)

    def answer(kind: str, items: list[dict[str, Any]]) -> None:
        (tmp_path / f"{kind}.json").write_text(json.dumps({"items": items}))

    answer("jobsets", [])
    answer("jobs", [])
    made = control.make_plan(recipe, tmp_path / "k.yaml")
    control.schedule(made)
    calls = (tmp_path / "calls").read_text()
    place = "--context lab --namespace default"
    assert f"{place} create --filename {made.folder / 'jobset-0.json'}" in calls

    def item(name: str, condition: str, time: str) -> dict[str, Any]:
        labels = {"cca-pipeline/job": name}
        metadata = {"name": f"set-{name}", "labels": labels, "creationTimestamp": time}
        conditions = [{"type": condition, "status": "True", "message": "exit code 2"}]
        return {"metadata": metadata, "status": {"conditions": conditions}}

    answer("jobsets", [item("", "Failed", "1")])
    old = item("shard-finish", "Failed", "1")
    answer("jobs", [item("shard-finish", "Complete", "2"), old, item("train-base", "Failed", "2")])
    found = {one.name: one for one in control.status(made.plan, made.folder)}
    assert found["shard-finish"].state == State.DONE
    assert found["train-base"].state == State.FAILED
    assert found["train-base"].reason == "exit code 2: train: the shards are gone"
    assert found["train-mse-w0.3"].state == State.CANCELLED
    assert found["promote-mse"].reason == "train-base failed"

    names = control.retry(made.plan, made.folder)
    assert "shard-finish" not in names
    again = json.loads((made.folder / "jobset-1.json").read_text())
    assert again["metadata"]["name"].endswith("-1")
    assert not any(e["name"].startswith("shard-f") for e in again["spec"]["replicatedJobs"])

    monkeypatch.setattr("orchestration.engines.kubernetes.SECONDS_BETWEEN_LOOKS", 0.0)
    control.cancel(made.plan, made.folder)
    calls = (tmp_path / "calls").read_text()
    _, suspended, after = calls.partition('patch jobset set- --type merge --patch {"spec":{"susp')
    assert suspended
    # It returns when the pods are gone, not before.
    assert (tmp_path / "gone").exists()
    assert after.count("get pods") == 2


RESTARTING = """#!/bin/bash
[ -e restarted ] || { touch restarted; echo 'connection refused' >&2; exit 1; }
echo '{"items": []}'
"""


def test_watching_goes_on_when_the_controller_was_away(
    recipe: Path, profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(RESTARTING, tmp_path, monkeypatch)
    monkeypatch.setattr(control, "PAUSE_SECONDS", 0.0)
    text = (profiles / "kubernetes.yaml").read_text() + "context: lab\n"
    (tmp_path / "k.yaml").write_text(text)
    made = control.make_plan(recipe, tmp_path / "k.yaml")

    seen: list[int] = []
    assert not control.wait(made.plan, made.folder, lambda found: seen.append(len(found)))
    assert seen == [len(made.plan.jobs)]


# A cluster of two nodes: what is asked for comes last.
SITE = """#!/bin/bash
shift 4
case "$*" in
  api-resources*) echo "$JOBSETS";;
  "auth can-i"*) echo "$RIGHTS"; [ "$RIGHTS" = yes ];;
  "get pvc"*) echo '{"spec": {"accessModes": ["'$MODE'"]}}';;
  "get secret"*) echo "Error from server (NotFound)" >&2; exit 1;;
  "get nodes"*) echo '{"items": [
    {"status": {"allocatable": {"cpu": "63500m", "memory": "256Gi", "nvidia.com/gpu": "8"}}},
    {"status": {"allocatable": {"cpu": "4", "memory": "16000000Ki"}}}]}';;
esac
"""


@pytest.mark.parametrize(
    ("variables", "fields", "missing"),
    [
        ({}, "resources: {train: {cpus: 63, gpus: 8, memory: 256G}}", set()),
        ({"JOBSETS": ""}, "", {"jobset"}),
        (
            {"RIGHTS": "no", "MODE": "ReadWriteOnce"},
            "secret: tracking",
            {"rights", "claim", "secret"},
        ),
        ({}, "resources: {train: {cpus: 64}, evaluate: {memory: 257G}}", {"train", "evaluate"}),
    ],
)
def test_doctor_holds_the_cluster_against_the_profile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    fields: str,
    missing: set[str],
) -> None:
    stand_in(SITE, tmp_path, monkeypatch)
    usual = {"JOBSETS": "jobsets.jobset.x-k8s.io", "RIGHTS": "yes", "MODE": "ReadWriteMany"}
    for name, value in {**usual, **variables}.items():
        monkeypatch.setenv(name, value)
    needed = "workdir: /w\nimage: i\nclaim: c\nmount: /m\ncontext: lab\n"
    (tmp_path / "k.yaml").write_text(f"engine: kubernetes\n{needed}{fields}\n")
    found = [*findings(load_profile(tmp_path / "k.yaml"))]
    said = {what.removeprefix("resources.") for state, what, _ in found if state == "missing"}
    assert said == missing


def test_doctor_without_kubectl_is_one_sentence(
    profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert [what for _, what, _ in findings(load_profile(profiles / "kubernetes.yaml"))] == [
        "context"
    ]
    text = (profiles / "kubernetes.yaml").read_text() + "context: lab\n"
    (tmp_path / "k.yaml").write_text(text)
    (said,) = findings(load_profile(tmp_path / "k.yaml"))
    assert said == ("missing", "kubernetes", "there is no command kubectl on this machine")
