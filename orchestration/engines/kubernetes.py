"""Kubernetes: a JobSet manifest, and kubectl when the profile names a context."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.engines.commands import output_of
from orchestration.engines.kubernetes_names import label_of
from orchestration.engines.manifest import CONTAINER, JOB_LABEL, PLAN_LABEL, jobset
from orchestration.errors import EngineError, UnansweredError
from orchestration.plan import Job, Plan
from orchestration.profile import KubernetesProfile
from orchestration.states import JobStatus, State
from pipeline.common.atomic import write_text
from pipeline.common.documents import parse

FILE = "jobset-{turn}.json"
SECONDS_BETWEEN_LOOKS = 2.0
# Seconds beyond their grace for pods to be gone: controllers hear of it late.
SECONDS_TO_END = 120.0
log = logging.getLogger(__name__)


class Kubernetes:
    """Plans on a Kubernetes cluster; the cluster's objects carry the plan's id as a label."""

    pause = 5.0

    def __init__(self, profile: KubernetesProfile) -> None:
        self.profile = profile

    def scripts(self, plan: Plan, folder: Path) -> dict[str, str]:
        """Return the manifest of the whole plan."""
        names = [job.name for job in plan.jobs]
        return {FILE.format(turn=0): _text(jobset(plan, self.profile, names, 0))}

    def submit(self, plan: Plan, folder: Path, names: Sequence[str]) -> None:
        """Write the manifest of the jobs, and apply it if the profile names a context."""
        turn = len(self._objects("jobsets", plan)) if self.profile.context else 0
        path = folder / FILE.format(turn=turn)
        write_text(path, _text(jobset(plan, self.profile, names, turn)))
        if self.profile.context:
            self.kubectl("create", "--filename", str(path))

    def statuses(self, plan: Plan, folder: Path) -> Mapping[str, JobStatus]:
        """Return each job's status, from its newest object in the cluster."""
        sets = self._objects("jobsets", plan)
        newest: dict[str, dict[str, Any]] = {}
        for found in self._objects("jobs", plan):
            newest[found["metadata"]["labels"].get(JOB_LABEL, "")] = found
        known = {
            job.name: job_status(job, newest[label_of(job.name)])
            for job in plan.jobs
            if label_of(job.name) in newest
        }
        if sets:
            at_work = not _finished(sets[-1])
            for job in plan.jobs:
                known.setdefault(job.name, _without_object(job, at_work))
        return known

    def log_files(self, plan: Plan, folder: Path, name: str) -> list[Path]:
        """Fetch the logs of the job's pods into the plan's folder and return the files."""
        pods = self._objects("pods", plan, f",{JOB_LABEL}={label_of(name)}")
        paths = []
        for pod in pods:
            pod_name = pod["metadata"]["name"]
            path = folder / "logs" / f"{pod_name}.log"
            try:
                written = self.kubectl("logs", pod_name, "--container", CONTAINER)
            except UnansweredError as error:
                # A pod that waits for a node or its image has none.
                log.info("no log of %s: %s", pod_name, error)
                continue
            write_text(path, written)
            paths.append(path)
        return paths

    def cancel(self, plan: Plan, folder: Path) -> None:
        """Suspend the plan's sets, and wait until their pods are gone; the history stays.

        Pods have the profile's `grace_seconds` to end in, training to write its checkpoint.
        """
        for found in self._objects("jobsets", plan):
            name = found["metadata"]["name"]
            patch = '{"spec":{"suspend":true}}'
            self.kubectl("patch", "jobset", name, "--type", "merge", "--patch", patch)
        end = time.monotonic() + self.profile.grace_seconds + SECONDS_TO_END
        while left := [pod for pod in self._objects("pods", plan) if not _over(pod)]:
            if time.monotonic() > end:
                names = ", ".join(pod["metadata"]["name"] for pod in left)
                raise EngineError(
                    f"plan {plan.id} is suspended, and its pods do not end: ask `kubectl describe"
                    f" pod` why ({names})"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _objects(self, kind: str, plan: Plan, more: str = "") -> list[dict[str, Any]]:
        """Return the plan's objects of a kind, oldest first."""
        selector = f"{PLAN_LABEL}={label_of(plan.id)}{more}"
        listed = self.kubectl("get", kind, "--selector", selector, "--output", "json")
        items: list[dict[str, Any]] = parse(listed)["items"]
        return sorted(items, key=lambda item: str(item["metadata"].get("creationTimestamp", "")))

    def kubectl(self, *words: str) -> str:
        """Return what kubectl says in the profile's context and namespace.

        Raises EngineError when it fails, or the profile names no context.
        """
        if self.profile.context is None:
            raise EngineError(
                "the profile names no context of kubectl, so the manifest was written and not"
                " applied: apply it by hand, or set context in the profile and schedule again"
            )
        place = ["--context", self.profile.context, "--namespace", self.profile.namespace]
        return output_of(["kubectl", *place, *words])


def job_status(job: Job, found: Mapping[str, Any]) -> JobStatus:
    """Return the status that a Job object of the cluster shows."""
    status = found.get("status", {})
    name = found["metadata"]["name"]
    for condition in status.get("conditions", []):
        if condition.get("status") != "True":
            continue
        if condition["type"] == "Complete":
            return JobStatus(job.name, State.DONE, engine_id=name)
        if condition["type"] == "Failed":
            reason = condition.get("message") or condition.get("reason", "")
            return JobStatus(job.name, State.FAILED, reason, engine_id=name)
        if condition["type"] == "Suspended":
            return JobStatus(job.name, State.CANCELLED, "suspended", engine_id=name)
    running = status.get("ready", 0) > 0
    state = State.RUNNING if running else State.QUEUED
    reason = "" if running else "its pods wait for a node"
    done = f"{status.get('succeeded', 0)} of {job.parts} parts" if job.parts > 1 else ""
    return JobStatus(job.name, state, reason, engine_id=name, progress=done)


def _over(pod: Mapping[str, Any]) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _finished(found: Mapping[str, Any]) -> bool:
    over = {"Completed", "Failed", "Suspended"}
    conditions = found.get("status", {}).get("conditions", [])
    return any(one["type"] in over and one.get("status") == "True" for one in conditions)


def _without_object(job: Job, at_work: bool) -> JobStatus:
    if at_work:
        return JobStatus(job.name, State.WAITING, f"for {', '.join(job.needs)}")
    return JobStatus(job.name, State.CANCELLED, "a job before it did not succeed")


def _text(manifest: dict[str, Any]) -> str:
    # JSON is YAML, and needs no library to be written exactly.
    return json.dumps(manifest, indent=1) + "\n"
