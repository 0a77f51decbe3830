"""The Kubernetes manifest of a plan: one JobSet, in it an Indexed Job for each job of the plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orchestration.engines.kubernetes_names import entry_names, label_of, set_name
from orchestration.plan import Job, Plan
from orchestration.profile import KubernetesProfile
from orchestration.script import AGAIN, command, preamble, stoppable
from recipes.launching.command import rendezvous

PLAN_LABEL = "cca-pipeline/plan"
JOB_LABEL = "cca-pipeline/job"
# The job's name in full, where a label is too short for it.
JOB_ANNOTATION = "cca-pipeline/job-name"
CONTAINER = "main"
PORT = 29500
# JobSet takes at most so many dependencies of one job; more go through a job that only waits.
MOST_NEEDS = 5


def jobset(
    plan: Plan, profile: KubernetesProfile, names: Sequence[str], turn: int
) -> dict[str, Any]:
    """Return the JobSet of the jobs called `names`; `turn` counts the submissions of the plan.

    A job that fails ends the set; one whose node goes away on several nodes makes it start again,
    where every job that is done ends at once by its own test.
    """
    chosen = [job for job in plan.jobs if job.name in names]
    name = set_name(plan.id, turn)
    entry = entry_names(plan.jobs, name)
    replicated: list[dict[str, Any]] = []
    for job in chosen:
        needs = [entry[need] for need in job.needs if need in names]
        gates = list(_gates(plan, profile, entry[job.name], needs)) if needs else []
        replicated += gates
        waits = [gate["name"] for gate in gates] or needs
        template = _job_template(plan, profile, job, f"{name}-{entry[job.name]}-0-0.{name}")
        replicated.append(_replicated(entry[job.name], template, waits))
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "namespace": profile.namespace,
            "labels": {PLAN_LABEL: label_of(plan.id)},
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": name},
            "failurePolicy": _failure_policy(profile),
            "replicatedJobs": replicated,
        },
    }


def _failure_policy(profile: KubernetesProfile) -> dict[str, Any]:
    lost = {"action": "RestartJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    wrong = {"action": "FailJobSet", "onJobFailureReasons": ["BackoffLimitExceeded"]}
    return {
        "maxRestarts": profile.requeues,
        "rules": [{"name": "nodeLost", **lost}, {"name": "commandFailed", **wrong}],
    }


def _replicated(name: str, template: dict[str, Any], needs: Sequence[str]) -> dict[str, Any]:
    waits = [{"name": need, "status": "Complete"} for need in needs]
    return {
        "name": name,
        "replicas": 1,
        **({"dependsOn": waits} if waits else {}),
        "template": template,
    }


def _gates(
    plan: Plan, profile: KubernetesProfile, name: str, needs: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield jobs that only wait, when `needs` are more than JobSet takes."""
    if len(needs) <= MOST_NEEDS:
        return
    size = -(-len(needs) // MOST_NEEDS)
    for number in range(0, len(needs), size):
        script = _container(profile, "true", {"cpu": "10m", "memory": "16Mi"})
        template = {"spec": _job_spec(plan, profile, f"{name}-needs", script, 1, several=False)}
        yield _replicated(f"{name}-n{number // size}", template, needs[number : number + size])


def _job_template(plan: Plan, profile: KubernetesProfile, job: Job, head: str) -> dict[str, Any]:
    wanted = job.resources
    amounts = {"cpu": str(wanted.cpus)}
    amounts |= {"memory": f"{wanted.memory}i"} if wanted.memory else {}
    amounts |= {profile.gpu_resource: str(wanted.gpus)} if wanted.gpus else {}
    container = _container(profile, _script(plan, job, profile, head), amounts)
    count = max(job.parts, wanted.nodes)
    spec = _job_spec(plan, profile, job.name, container, count, several=wanted.nodes > 1)
    about = {"labels": _labels(plan, job.name), "annotations": {JOB_ANNOTATION: job.name}}
    return {"metadata": about, "spec": spec}


def _job_spec(
    plan: Plan,
    profile: KubernetesProfile,
    name: str,
    container: dict[str, Any],
    count: int,
    several: bool,
) -> dict[str, Any]:
    """Return an Indexed Job of `count` pods; `several`: they work on one thing together.

    A pod that its node gave up, or that says "again", is replaced and not counted as a failure.
    One of several can't be replaced alone: the others have lost it, so all start again.
    """
    action = "FailJob" if several else "Ignore"
    gone = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    again = {"onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [AGAIN]}}
    return {
        "completionMode": "Indexed",
        "completions": count,
        "parallelism": count,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": action, **rule} for rule in (gone, again)]},
        "template": {
            "metadata": {"labels": _labels(plan, name), "annotations": {JOB_ANNOTATION: name}},
            "spec": _pod_spec(profile, container),
        },
    }


def _pod_spec(profile: KubernetesProfile, container: dict[str, Any]) -> dict[str, Any]:
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": profile.claim}}
    # Loader workers hand batches over in /dev/shm, of which a container has 64 MB by default.
    shm = {"name": "shm", "emptyDir": {"medium": "Memory"}}
    return {
        **profile.pod,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": profile.grace_seconds,
        **({"nodeSelector": profile.node_selector} if profile.node_selector else {}),
        "containers": [container],
        "volumes": [claim, shm],
    }


def _container(profile: KubernetesProfile, script: str, amounts: dict[str, str]) -> dict[str, Any]:
    secret = [{"secretRef": {"name": profile.secret}}] if profile.secret else []
    mounts = [{"name": "data", "mountPath": profile.mount}]
    return {
        "name": CONTAINER,
        "image": profile.image,
        "command": ["bash", "-c", script],
        **({"envFrom": secret} if secret else {}),
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [*mounts, {"name": "shm", "mountPath": "/dev/shm"}],
    }


def _script(plan: Plan, job: Job, profile: KubernetesProfile, head: str) -> str:
    lines = preamble(plan, job, profile)
    if job.resumable:
        meet = rendezvous('"$JOB_COMPLETION_INDEX"', head, str(PORT))
        lines.append(stoppable(command(job, rendezvous=meet)))
    else:
        lines.append(command(job, part='"$JOB_COMPLETION_INDEX"'))
    return "\n".join(lines) + "\n"


def _labels(plan: Plan, name: str) -> dict[str, str]:
    return {PLAN_LABEL: label_of(plan.id), JOB_LABEL: label_of(name)}
