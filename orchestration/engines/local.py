"""This machine: a process in the background that runs a plan's jobs as their needs are met.

Beside the plan's scripts lies a folder `local` with, for each job or part,
    NAME.lock  held (flock) by the job's processes for as long as one of them lives
    NAME.pid   the process group of the newest start
    NAME.exit  its exit code, written when it ended
and `supervisor.lock` and `supervisor.pid` of the background process. A lock dies with its holders,
also when the machine loses power, so nothing here can claim that a dead job runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orchestration.errors import EngineError
from orchestration.plan import Job, Plan
from orchestration.profile import LocalProfile
from orchestration.script import command, preamble, title
from orchestration.states import JobStatus, State, blockers, gathered
from pipeline.common.locks import is_locked

SPOOL = "local"
SUPERVISOR = "supervisor"
# Written in place of an exit code when `cancel` ended the job.
CANCELLED = "cancelled"
STOP_SECONDS = 60.0
# Seconds for training that is asked to stop to end its step and write its state.
CHECKPOINT_SECONDS = 300.0


class Local:
    """Plans on this machine."""

    pause = 0.5

    def __init__(self, profile: LocalProfile) -> None:
        self.profile = profile

    def scripts(self, plan: Plan, folder: Path) -> dict[str, str]:
        """Return a shell script for each job."""
        return {f"{job.name}.sh": self._script(plan, job) for job in plan.jobs}

    def _script(self, plan: Plan, job: Job) -> str:
        lines = ["#!/bin/bash", title(plan, job)]
        if job.parts > 1:
            lines.append(f"# PART is the number of the part, from 0 to {job.parts - 1}.")
        return "\n".join([*lines, *preamble(plan, job, self.profile), command(job)]) + "\n"

    def submit(self, plan: Plan, folder: Path, names: Sequence[str]) -> None:
        """Start the background process, which runs whatever of `names` is not done."""
        spool = folder / SPOOL
        spool.mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
        if is_locked(spool / f"{SUPERVISOR}.lock"):
            raise EngineError(f"plan {plan.id} is at work already: wait for it, or cancel it")
        for job in plan.jobs:
            for label in job.labels:
                if is_locked(spool / f"{label}.lock"):
                    raise EngineError(
                        f"{label} of plan {plan.id} still runs: cancel the plan first"
                    )
                if job.name in names:
                    (spool / f"{label}.exit").unlink(missing_ok=True)
                    (spool / f"{label}.pid").unlink(missing_ok=True)
        words = [sys.executable, "-m", "orchestration.engines.supervisor", str(folder), *names]
        with (folder / "logs" / f"{SUPERVISOR}.log").open("a") as log:
            process = subprocess.Popen(
                words, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        _until(lambda: is_locked(spool / f"{SUPERVISOR}.lock") or process.poll() is not None)

    def statuses(self, plan: Plan, folder: Path) -> Mapping[str, JobStatus]:
        """Return the state of each job from the locks and exit codes of its processes."""
        spool = folder / SPOOL
        alive = is_locked(spool / f"{SUPERVISOR}.lock")
        known: dict[str, JobStatus] = {}
        for job in plan.jobs:
            parts = [_status(spool, job, label, alive, known) for label in job.labels]
            found = [part for part in parts if part is not None]
            if found:
                known[job.name] = gathered(job.name, found, job.parts)
        return known

    def log_files(self, plan: Plan, folder: Path, name: str) -> list[Path]:
        """Return the log of each part that has started."""
        files = [folder / "logs" / f"{label}.log" for label in plan.job(name).labels]
        return [path for path in files if path.exists()]

    def cancel(self, plan: Plan, folder: Path) -> None:
        """Tell the background process to stop its jobs, and any that outlived it to stop too."""
        spool = folder / SPOOL
        lock = spool / f"{SUPERVISOR}.lock"
        if is_locked(lock):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((spool / f"{SUPERVISOR}.pid").read_text()), signal.SIGTERM)
            # It stops its jobs itself, one after another.
            _until(lambda: not is_locked(lock), CHECKPOINT_SECONDS * len(plan.jobs))
        for job in plan.jobs:
            for label in job.labels:
                stop_group(spool, label)


def stop_group(spool: Path, label: str) -> None:
    """End the processes of a job: asked first, forced after a while."""
    lock, pid = spool / f"{label}.lock", spool / f"{label}.pid"
    if not is_locked(lock) or not pid.exists():
        return
    group = int(pid.read_text())
    for number, seconds in ((signal.SIGTERM, CHECKPOINT_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        # Launchers end at once and keep the lock to themselves; training writes a checkpoint.
        if _until(lambda: not is_locked(lock) and not _lives(group), seconds):
            return
    raise EngineError(f"the processes of {label} do not end (process group {group})")


def _lives(group: int) -> bool:
    """Return whether a process of the process group runs; one that nobody waits for does not."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _until(reached: Callable[[], bool], seconds: float = STOP_SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def _status(
    spool: Path, job: Job, label: str, alive: bool, known: Mapping[str, JobStatus]
) -> JobStatus | None:
    """Return the state of one part; `alive`: the background process runs."""
    pid, ended = spool / f"{label}.pid", spool / f"{label}.exit"
    number = pid.read_text() if pid.exists() else ""
    if is_locked(spool / f"{label}.lock"):
        return JobStatus(job.name, State.RUNNING, engine_id=number)
    if ended.exists():
        code = ended.read_text().strip()
        if code == "0":
            return JobStatus(job.name, State.DONE, engine_id=number)
        if code == CANCELLED:
            return JobStatus(job.name, State.CANCELLED, "cancelled", engine_id=number)
        return JobStatus(job.name, State.FAILED, f"exit code {code}", engine_id=number)
    if number and alive:
        return JobStatus(job.name, State.RUNNING, engine_id=number)
    if number:
        return JobStatus(
            job.name, State.FAILED, "ended with this machine or by force", engine_id=number
        )
    blocking = blockers(job, known)
    over = next((other for other in blocking if not other.state.active), None)
    if over:
        return JobStatus(job.name, State.CANCELLED, f"{over.name} did not succeed")
    if not alive:
        return None
    if blocking:
        return JobStatus(job.name, State.WAITING, f"for {blocking[0].name}")
    return JobStatus(job.name, State.QUEUED, "for free cores or GPUs")
