"""Slurm: sbatch, squeue, sacct and scancel, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from orchestration.engines.commands import output_of
from orchestration.engines.slurm_script import batch_script, job_name
from orchestration.errors import EngineError
from orchestration.plan import Job, Plan
from orchestration.profile import SlurmProfile
from orchestration.states import JobStatus, State, gathered

STATES = {
    "PENDING": State.QUEUED,
    "REQUEUED": State.QUEUED,
    "REQUEUE_FED": State.QUEUED,
    "REQUEUE_HOLD": State.QUEUED,
    "SPECIAL_EXIT": State.QUEUED,
    "RESV_DEL_HOLD": State.QUEUED,
    "PREEMPTED": State.QUEUED,
    "RUNNING": State.RUNNING,
    "CONFIGURING": State.RUNNING,
    "COMPLETING": State.RUNNING,
    "STAGE_OUT": State.RUNNING,
    "RESIZING": State.RUNNING,
    "SIGNALING": State.RUNNING,
    "STOPPED": State.RUNNING,
    "SUSPENDED": State.RUNNING,
    "COMPLETED": State.DONE,
    "CANCELLED": State.CANCELLED,
    "REVOKED": State.CANCELLED,
}
QUEUE = (
    "JobArrayID",
    "Name",
    "State",
    "Reason",
    "TimeUsed",
    "TimeLeft",
    "NodeList",
    "exit_code",
    "RestartCnt",
)
ACCOUNTING = ("JobID", "JobName", "State", "Reason", "Elapsed", "NodeList", "ExitCode")
# Variables that say which cluster is meant, not what a job is given.
ABOUT_CLUSTER = {"SLURM_CONF", "SLURM_CLUSTERS"}
SECONDS_BETWEEN_LOOKS = 1.0
# A cluster gives the processes of a cancelled job KillWait to end, 30 s by default.
SECONDS_TO_END = 300.0
UNINTERESTING = {"None", "NonZeroExitCode", "(null)", "Dependency"}


class Slurm:
    """Plans on a Slurm cluster. Jobs are found again by their names, which hold the plan's id."""

    pause = 10.0

    def __init__(self, profile: SlurmProfile) -> None:
        self.profile = profile

    def scripts(self, plan: Plan, folder: Path) -> dict[str, str]:
        """Return a batch script for each job."""
        return {
            f"{job.name}.sh": batch_script(plan, job, self.profile, folder) for job in plan.jobs
        }

    def submit(self, plan: Plan, folder: Path, names: Sequence[str]) -> None:
        """Submit the jobs, each after those it needs; when one is refused, none stays."""
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        known = {
            name: status.engine_id
            for name, status in self.statuses(plan, folder).items()
            if status.state.active
        }
        try:
            for job in plan.jobs:
                if job.name in names:
                    known[job.name] = self._sbatch(folder, job, known)
        except BaseException:
            # By name: a controller that did not answer in time may have taken a job all the same.
            self._cancel(plan, names)
            raise

    def _sbatch(self, folder: Path, job: Job, known: Mapping[str, str]) -> str:
        words = ["sbatch", "--parsable"]
        needs = [known[need] for need in job.needs if need in known]
        if needs:
            words.append(f"--dependency=afterok:{':'.join(needs)}")
        words.append(str(folder / f"{job.name}.sh"))
        return output_of(words, environment=_outside_jobs()).strip().partition(";")[0]

    def statuses(self, plan: Plan, folder: Path) -> Mapping[str, JobStatus]:
        """Return what the queue knows, and accounting where the queue has forgotten."""
        by_name = {job_name(plan, job): job for job in plan.jobs}
        parts: dict[str, dict[str, JobStatus]] = {}
        queued = list(_queue(by_name))
        there = {name for name, _ in queued}
        forgotten = {name: job for name, job in by_name.items() if job.name not in there}
        kept = _accounting(plan, forgotten) if forgotten else ()
        for name, status in (*kept, *queued):
            # Of several submissions of a job the newest counts: the one with the highest number.
            newest = parts.setdefault(name, {})
            mine = _number(status.engine_id)
            if newest and max(_number(part) for part in newest) < mine:
                newest.clear()
            if not newest or max(_number(part) for part in newest) == mine:
                newest[status.engine_id] = status
        return {name: gathered(name, _without_bundles(found)) for name, found in parts.items()}

    def log_files(self, plan: Plan, folder: Path, name: str) -> list[Path]:
        """Return the logs of the newest submission."""
        found = [
            path
            for path in (folder / "logs").glob(f"{name}.*.log")
            if re.fullmatch(rf"{re.escape(name)}\.[0-9]+(_[0-9]+)?\.log", path.name)
        ]
        numbers = {path: int(re.split(r"[._]", path.name[len(name) + 1 :])[0]) for path in found}
        newest = max(numbers.values(), default=0)
        return sorted((path for path in found if numbers[path] == newest), key=_part)

    def cancel(self, plan: Plan, folder: Path) -> None:
        """Cancel every job of the plan that is not over, and wait until they have ended.

        Whatever is submitted before that would wait for a cancelled job, and be cancelled too.
        """
        names = [job.name for job in plan.jobs]
        end = time.monotonic() + SECONDS_TO_END
        # Again and again: one that was putting itself back in the queue is there again.
        while there := self._cancel(plan, names):
            if time.monotonic() > end:
                raise EngineError(
                    f"jobs {', '.join(map(str, there))} of plan {plan.id} were cancelled"
                    f" {SECONDS_TO_END:g} s ago and do not end: ask `squeue` why"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _cancel(self, plan: Plan, jobs: Sequence[str]) -> list[int]:
        """Cancel what the queue has of these jobs; return the numbers of what is not over."""
        names = ",".join(job_name(plan, plan.job(name)) for name in jobs)
        listed = output_of(["squeue", "--noheader", f"--name={names}", "--format=%A %T"])
        lines = [line.split() for line in listed.splitlines()]
        # scancel takes one name at most, but any number of jobs; the last ones first, so that
        # none starts because of what happens to another.
        numbers = sorted({int(number) for number, _ in lines}, reverse=True)
        lively = {int(number) for number, state in lines if state != "COMPLETING"}
        if lively:
            output_of(["scancel", *(str(number) for number in numbers if number in lively)])
        return numbers


def find_folder(plan_id: str) -> Path | None:
    """Return the folder of a plan that the queue knows by its id, from the jobs' comments."""
    if shutil.which("squeue") is None:
        return None
    try:
        listed = output_of(["squeue", "--me", "--noheader", "--states=all", "--format=%j|%k"])
    except EngineError:
        return None
    for line in listed.splitlines():
        name, _, folder = line.partition("|")
        if name.startswith(f"{plan_id}:"):
            return Path(folder)
    return None


def _outside_jobs() -> dict[str, str]:
    """Return the environment without what a job that this process may run in says of itself.

    Slurm hands it on, and srun would take that job's memory or cores for the new one's.
    """
    inside = "SLURM_JOB_ID" in os.environ
    return {
        name: value
        for name, value in os.environ.items()
        if not (inside and name.startswith("SLURM_")) or name in ABOUT_CLUSTER
    }


def _queue(by_name: Mapping[str, Job]) -> Iterator[tuple[str, JobStatus]]:
    words = ["squeue", "--noheader", "--states=all", "--array", f"--name={','.join(by_name)}"]
    words.append(f"--Format={','.join(f'{column}:|' for column in QUEUE)}")
    for line in output_of(words).splitlines():
        fields = line.split("|")[:-1]
        if len(fields) != len(QUEUE) or fields[1] not in by_name:
            continue
        number, name, word, why, elapsed, left, nodes, code, starts = fields
        state = _state(word, why)
        status = JobStatus(
            name=by_name[name].name,
            state=state,
            reason=_reason(word, why, _exit_code(code)),
            engine_id=number,
            elapsed=elapsed,
            left=left if state == State.RUNNING else "",
            nodes=nodes,
            restarts=int(starts),
        )
        yield status.name, status


def _accounting(plan: Plan, by_name: Mapping[str, Job]) -> Iterator[tuple[str, JobStatus]]:
    words = ["sacct", "--allocations", "--parsable2", "--noheader", f"--name={','.join(by_name)}"]
    words += [f"--format={','.join(ACCOUNTING)}", f"--starttime={_local_time(plan.created)}"]
    try:
        lines = output_of(words).splitlines()
    except EngineError:
        # A cluster may have no accounting, or it is down; the queue remembers for some minutes.
        return
    for line in lines:
        fields = line.split("|")
        if len(fields) != len(ACCOUNTING) or fields[1] not in by_name:
            continue
        number, name, word, why, elapsed, nodes, code = fields
        # In the queue that is for a moment, before the job waits again; here it is the end.
        state = State.FAILED if word == "PREEMPTED" else _state(word, why)
        status = JobStatus(
            name=by_name[name].name,
            state=state,
            reason=_reason(word, why, code.partition(":")[0]),
            engine_id=number,
            elapsed=elapsed,
            nodes=nodes,
        )
        yield status.name, status


def _local_time(created: str) -> str:
    """Return the time a little before `created` as sacct reads it: local, without a zone."""
    return (
        f"{datetime.fromisoformat(created).astimezone() - timedelta(minutes=5):%Y-%m-%dT%H:%M:%S}"
    )


def _state(state: str, reason: str) -> State:
    word = state.split()[0] if state else ""
    if word == "PENDING" and reason == "Dependency":
        return State.WAITING
    return STATES.get(word, State.FAILED)


def _reason(word: str, why: str, code: str) -> str:
    """Return why a job waits or did not succeed, in Slurm's own words."""
    found = _state(word, why)
    if found in (State.RUNNING, State.DONE):
        return ""
    words = [] if word in ("PENDING", "FAILED") else [word]
    words += [why] if why and why not in UNINTERESTING else []
    if found == State.FAILED and code not in ("", "0"):
        words.append(f"exit code {code}")
    return ", ".join(words)


def _exit_code(status: str) -> str:
    """Return the exit code in a status as `wait` gives it: the code times 256."""
    return str(int(status) >> 8) if status.isdecimal() else ""


def _number(engine_id: str) -> int:
    return int(re.split(r"[_.+]", engine_id)[0])


def _without_bundles(found: Mapping[str, JobStatus]) -> list[JobStatus]:
    """Drop the line of an array as a whole, `12_[0-7]`, when its parts have lines of their own."""
    single = [status for number, status in found.items() if "[" not in number]
    return single or list(found.values())


def _part(path: Path) -> int:
    return int(path.name.rsplit(".", 2)[1].partition("_")[2] or 0)
