"""Ray: each job of a plan as a job of Ray's Jobs API, started in order by one more such job.

Ray knows no order among its jobs. `submit` hands over a job of ours, the supervisor, which takes no
resources and submits the plan's jobs as their needs are met (`ray_supervisor`). The driver of each
(`ray_driver`) asks Ray for the job's resources, starts its script on the nodes that it gets, and
starts it again when a node is lost. The jobs' metadata say which plan they are of.

Beside the plan's scripts lies a folder `ray` with a file `NAME.json` for each job or part, in which
its driver keeps what only it knows: whether it waits, on which nodes it runs, how it ended.
"""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestration.engines.ray_api import ACTIVE, JobsApi
from orchestration.engines.ray_states import SUPERVISOR, Known, statuses
from orchestration.errors import EngineError, HalfSubmittedError
from orchestration.plan import Job, Plan
from orchestration.profile import RayProfile
from orchestration.script import arriving, command, preamble, stoppable, title
from orchestration.states import JobStatus
from pipeline.common.atomic import write_json
from recipes.launching.command import rendezvous

SPOOL = "ray"
SECONDS_BETWEEN_LOOKS = 0.5
# Seconds beyond the grace for the head node to record that a job has ended.
SECONDS_TO_END = 60.0


class Ray:
    """Plans on a Ray cluster whose nodes share the plan's folder."""

    pause = 2.0

    def __init__(self, profile: RayProfile) -> None:
        self.profile = profile
        self.api = JobsApi(profile.address)

    def scripts(self, plan: Plan, folder: Path) -> dict[str, str]:
        """Return a shell script for each job."""
        return {f"{job.name}.sh": self._script(plan, job) for job in plan.jobs}

    def _script(self, plan: Plan, job: Job) -> str:
        lines = ["#!/bin/bash", title(plan, job)]
        if job.parts > 1:
            lines.append(f"# PART is the number of the part, from 0 to {job.parts - 1}.")
        if job.resources.nodes > 1:
            lines.append("# NODE is the number of the node; they meet at HEAD, on its port PORT.")
        lines += [*arriving(), *preamble(plan, job, self.profile)]
        meet = rendezvous('"$NODE"', '"$HEAD"', '"$PORT"')
        text = command(job, rendezvous=meet)
        return "\n".join([*lines, stoppable(text) if job.resumable else text]) + "\n"

    def submit(self, plan: Plan, folder: Path, names: Sequence[str]) -> None:
        """Hand over the supervisor, which submits the jobs called `names`."""
        self.check_version()
        before = self._known(plan)
        if before.at_work:
            raise EngineError(f"plan {plan.id} is at work already: wait for it, or cancel it")
        spool = folder / SPOOL
        spool.mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
        for name in names:
            for label in plan.job(name).labels:
                (spool / f"{label}.json").unlink(missing_ok=True)
        write_json(spool / f"{SUPERVISOR}.json", {"jobs": list(names)})
        try:
            self.start(plan, folder, SUPERVISOR, before.turns)
        except EngineError as error:
            self._withdraw(plan, error)
            raise

    def start(self, plan: Plan, folder: Path, name: str, turn: int) -> None:
        """Submit the job called `name`, or the supervisor, as a job of Ray."""
        module = "ray_supervisor" if name == SUPERVISOR else "ray_driver"
        python = f"{self.profile.environment or sys.prefix}/bin/python"
        words = [python, "-P", "-u", "-m", f"orchestration.engines.{module}", str(folder)]
        words += [] if name == SUPERVISOR else [name]
        self.api.submit(
            f"{plan.id}-{name}-{turn}",
            shlex.join(words),
            {"plan": plan.id, "job": name, "turn": str(turn), "folder": str(folder)},
            # Ray kills a job that was told to stop after 3 s, or as many as this says.
            {"RAY_JOB_STOP_WAIT_TIME_S": str(self.profile.grace_seconds)},
        )

    def check_version(self) -> None:
        """Raise EngineError for an environment of the jobs that could not join the cluster."""
        cluster = self.api.version()
        if self.profile.environment not in (None, sys.prefix):
            return
        try:
            own = importlib.metadata.version("ray")
        except importlib.metadata.PackageNotFoundError:
            raise EngineError(
                f"the jobs' environment {sys.prefix} has no Ray: install there what the cluster"
                f" runs, pip install 'cca-pipeline[ray]' 'ray=={cluster}'"
            ) from None
        if own != cluster:
            raise EngineError(
                f"the cluster runs Ray {cluster}, and the jobs' environment {sys.prefix} has Ray"
                f" {own}, which can't join it: pip install 'ray=={cluster}'"
            )

    def _withdraw(self, plan: Plan, error: EngineError) -> None:
        """Stop a supervisor that was taken although the answer says otherwise."""
        try:
            self._stop([job for job in self._jobs(plan) if job["status"] in ACTIVE])
        except EngineError as why:
            raise HalfSubmittedError(
                f"{error}; it is unknown now whether the plan is at work ({why}): type `pipeline"
                f" cancel {plan.id}` when the cluster answers, or `pipeline retry {plan.id}`"
            ) from error

    def statuses(self, plan: Plan, folder: Path) -> Mapping[str, JobStatus]:
        """Return what Ray says of each job, and its driver's own notes."""
        return statuses(plan, folder / SPOOL, self._known(plan))

    def turns(self, plan: Plan) -> int:
        """Return how often the plan was submitted, as far as the cluster remembers."""
        return self._known(plan).turns

    def log_files(self, plan: Plan, folder: Path, name: str) -> list[Path]:
        """Return the logs of each part on each node that has started."""
        job = plan.job(name)
        files = [
            folder / "logs" / file
            for label in job.labels
            for file in log_names(label, job.resources.nodes)
        ]
        return [path for path in files if path.exists()]

    def cancel(self, plan: Plan, folder: Path) -> None:
        """Stop the supervisor, then the jobs, and wait until none has processes any more."""
        self._end(plan, lambda job: job["metadata"]["job"] == SUPERVISOR)
        self._end(plan, lambda job: True)

    def _end(self, plan: Plan, chosen: Callable[[Mapping[str, Any]], bool]) -> None:
        end = time.monotonic() + self.profile.grace_seconds + SECONDS_TO_END
        asked: set[str] = set()
        while left := [job for job in self._jobs(plan) if job["status"] in ACTIVE and chosen(job)]:
            new = [job for job in left if job["submission_id"] not in asked]
            self._stop(new)
            asked.update(job["submission_id"] for job in new)
            if time.monotonic() > end:
                names = ", ".join(job["submission_id"] for job in left)
                raise EngineError(
                    f"jobs of plan {plan.id} do not end: ask `ray job list` ({names})"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _stop(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        for job in jobs:
            self.api.stop(job["submission_id"])

    def _jobs(self, plan: Plan) -> list[dict[str, Any]]:
        return [
            job for job in self.api.jobs() if (job.get("metadata") or {}).get("plan") == plan.id
        ]

    def _known(self, plan: Plan) -> Known:
        return Known.of(self._jobs(plan))


def log_names(label: str, nodes: int) -> list[str]:
    """Return what the logs of one part of a job are called, one for each node."""
    if nodes == 1:
        return [f"{label}.log"]
    return [f"{label}.node{node}.log" for node in range(nodes)]
