"""Reads the answers of `squeue` and `sacct` into statuses of jobs.

Both tools may be wrapped by a site, which then prints more than was asked for: a line counts when
all its columns are there and its job is one of ours.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from orchestration.engines.commands import quoted
from orchestration.engines.slurm_tools import ask
from orchestration.errors import EngineError
from orchestration.plan import Job, Plan
from orchestration.states import JobStatus, State

log = logging.getLogger(__name__)

# Seconds for accounting, which only adds to the queue: a hanging database must not stop all.
SECONDS_FOR_ACCOUNTING = 20.0
# All states and state flags of https://slurm.schedmd.com/job_state_codes.html and of `man squeue`.
STATES = {
    # It waits for resources, or for somebody to let it go.
    "PENDING": State.QUEUED,
    "REQUEUED": State.QUEUED,
    "REQUEUE_FED": State.QUEUED,
    "REQUEUE_HOLD": State.QUEUED,
    "RESV_DEL_HOLD": State.QUEUED,
    "SPECIAL_EXIT": State.QUEUED,
    "LAUNCH_FAILED": State.QUEUED,
    # It has nodes.
    "RUNNING": State.RUNNING,
    "CONFIGURING": State.RUNNING,
    "POWER_UP_NODE": State.RUNNING,
    "COMPLETING": State.RUNNING,
    "EXPEDITING": State.RUNNING,
    "STAGE_OUT": State.RUNNING,
    "RESIZING": State.RUNNING,
    "SIGNALING": State.RUNNING,
    "STOPPED": State.RUNNING,
    "SUSPENDED": State.RUNNING,
    "UPDATE_DB": State.RUNNING,
    # It has ended, and will not run again.
    "COMPLETED": State.DONE,
    "CANCELLED": State.CANCELLED,
    "REVOKED": State.CANCELLED,
    "BOOT_FAIL": State.FAILED,
    "DEADLINE": State.FAILED,
    "FAILED": State.FAILED,
    "NODE_FAIL": State.FAILED,
    "OUT_OF_MEMORY": State.FAILED,
    "PREEMPTED": State.FAILED,
    "RECONFIG_FAIL": State.FAILED,
    "TIMEOUT": State.FAILED,
}
# Explains states to readers who do not know Slurm's documentation.
EXPLAINED = {
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline has passed",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted for good: the partition cancels what it preempts",
    "RECONFIG_FAIL": "its node could not be set up",
    "REVOKED": "another cluster of the federation took it",
    "STOPPED": "stopped, its nodes are kept",
    "SUSPENDED": "suspended",
    "TIMEOUT": "time limit",
}
HELD_STATES = {"REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
HELD = re.compile(r"JobHeld\w*|.*\bheld\b.*", re.IGNORECASE)
UNINTERESTING = {"", "None", "NonZeroExitCode", "(null)", "Dependency"}
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
# 12, 12_3, 12_[0-7], 12_[4-7%2]
ENGINE_ID = re.compile(r"[0-9]+(_([0-9]+|\[[0-9,%:\-.]+\]))?")


def queued(by_name: Mapping[str, Job], cluster: str | None = None) -> list[JobStatus]:
    """Return the statuses of jobs in `squeue`, by the names that Slurm has for them.

    Raises `EngineError` when it does not answer.
    """
    words = ["squeue", "--noheader", "--states=all", "--array", f"--name={','.join(by_name)}"]
    words.append(f"--Format={','.join(f'{column}:|' for column in QUEUE)}")
    return [_queued(fields, by_name) for fields in _rows(ask(words, cluster), QUEUE, by_name)]


def _queued(fields: Sequence[str], by_name: Mapping[str, Job]) -> JobStatus:
    number, name, word, why, elapsed, left, nodes, code, starts = fields
    state = state_of(word, why)
    return JobStatus(
        name=by_name[name].name,
        state=state,
        reason=reason_of(word, why, _exit_code(code), number),
        engine_id=number,
        elapsed=elapsed,
        left=left if state == State.RUNNING else "",
        nodes=nodes,
        restarts=int(starts) if starts.isdecimal() else 0,
    )


def accounted(
    plan: Plan, by_name: Mapping[str, Job], cluster: str | None = None
) -> list[JobStatus]:
    """Return the statuses of jobs in `sacct`; none where it does not answer.

    A cluster may have no accounting, or it is down; the queue remembers for some minutes.
    """
    words = ["sacct", "--allocations", "--parsable2", "--noheader", f"--name={','.join(by_name)}"]
    words += [f"--format={','.join(ACCOUNTING)}", f"--starttime={_local_time(plan.created)}"]
    try:
        said = ask(words, cluster, seconds=SECONDS_FOR_ACCOUNTING)
    except EngineError as error:
        log.info("%s", error)
        return []
    return [_accounted(fields, by_name) for fields in _rows(said, ACCOUNTING, by_name)]


def _accounted(fields: Sequence[str], by_name: Mapping[str, Job]) -> JobStatus:
    number, name, word, why, elapsed, nodes, code = fields
    return JobStatus(
        name=by_name[name].name,
        state=state_of(word, why),
        reason=reason_of(word, why, code.partition(":")[0], number),
        engine_id=number,
        elapsed=elapsed,
        nodes=nodes,
    )


def _rows(
    said: str, columns: Sequence[str], by_name: Mapping[str, Job]
) -> Iterator[tuple[str, ...]]:
    """Yield the fields of each line that is about one of the jobs."""
    odd = []
    for line in said.splitlines():
        fields = tuple(field.strip() for field in line.split("|"))[: len(columns)]
        if len(fields) == len(columns) and ENGINE_ID.fullmatch(fields[0]) and fields[1] in by_name:
            yield fields
        elif line.strip():
            odd.append(line)
    if odd:
        about_us = any(name in line for line in odd for name in by_name)
        level = logging.WARNING if about_us else logging.INFO
        log.log(level, "Slurm also said, which was not understood: %s", quoted(" / ".join(odd)))


def state_of(word: str, reason: str) -> State:
    """Return the state for Slurm's `word` and `reason`; UNKNOWN for a word that is not Slurm's."""
    word = word.split()[0] if word.split() else ""
    if word == "PENDING" and reason == "Dependency":
        return State.WAITING
    return STATES.get(word, State.UNKNOWN)


def reason_of(word: str, why: str, code: str, number: str) -> str:
    """Return why the job `number` waits or did not succeed, as briefly as can be understood."""
    state = state_of(word, why)
    name = word.split()[0] if word.split() else ""
    if state == State.UNKNOWN:
        return f"Slurm says {word or 'nothing'}, which this version does not know"
    if state == State.DONE or name in ("RUNNING", "COMPLETING"):
        return ""
    if name in HELD_STATES or HELD.fullmatch(why):
        plain = number.partition("_")[0]
        return f"{why if why not in UNINTERESTING else name}: `scontrol release {plain}` lets it go"
    words = [EXPLAINED.get(name, "")]
    if not words[0] and name not in ("PENDING", "FAILED", "CANCELLED"):
        words = [name]
    words += [_canceller(word)] if state == State.CANCELLED else []
    said = {name.replace("_", ""), words[0].upper().replace(" ", "")}
    words += [why] if why not in UNINTERESTING and why.upper() not in said else []
    if name == "FAILED" and code not in ("", "0"):
        words.append(f"exit code {code}")
    return ", ".join(part for part in words if part)


def _canceller(word: str) -> str:
    """Return who cancelled: accounting has `CANCELLED by 1001`."""
    import pwd

    found = re.fullmatch(r"CANCELLED by ([0-9]+)", word)
    if not found:
        return ""
    try:
        return f"cancelled by {pwd.getpwuid(int(found[1])).pw_name}"
    except (KeyError, OverflowError):
        return f"cancelled by user {found[1]}"


def _local_time(created: str) -> str:
    """Return the time a little before `created` as sacct reads it: local, without a zone."""
    return (
        f"{datetime.fromisoformat(created).astimezone() - timedelta(minutes=5):%Y-%m-%dT%H:%M:%S}"
    )


def _exit_code(status: str) -> str:
    """Return the exit code in a status as `wait` gives it: the code times 256."""
    return str(int(status) >> 8) if status.isdecimal() else ""
