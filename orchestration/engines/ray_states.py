"""States of a plan's jobs on Ray, from the cluster's records and the notes of their drivers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestration.engines.ray_api import ACTIVE
from orchestration.engines.ray_notes import Note, read_note
from orchestration.plan import Job, Plan
from orchestration.states import JobStatus, State, blockers, gathered

SUPERVISOR = "supervisor"
# A job as Ray's Jobs API describes it.
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """What a cluster remembers of a plan: its newest supervisor, the newest job of each name."""

    supervisor: Record | None
    jobs: Mapping[str, Record]
    turns: int
    """How often the plan was submitted."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> Known:
        """Return what the plan's records, oldest first, say."""
        newest = {record["metadata"]["job"]: record for record in records}
        supervisor = newest.pop(SUPERVISOR, None)
        turns = sum(record["metadata"]["job"] == SUPERVISOR for record in records)
        return cls(supervisor, newest, turns)

    @property
    def at_work(self) -> bool:
        """Whether the supervisor still starts jobs."""
        return self.supervisor is not None and self.supervisor["status"] in ACTIVE

    def of_this_turn(self, job: Job) -> Record | None:
        """Return the job's record if it was submitted since the plan was, the last time."""
        found = self.jobs.get(job.name)
        turn = str(self.turns - 1)
        return found if found is not None and found["metadata"].get("turn") == turn else None


def statuses(plan: Plan, spool: Path, known: Known) -> dict[str, JobStatus]:
    """Return the status of each known job; `spool` is the folder of the notes.

    Notes are removed before a job is submitted again: where there is none, the job has not begun
    in this turn.
    """
    found: dict[str, JobStatus] = {}
    for job in plan.jobs:
        notes = [read_note(spool, label) for label in job.labels]
        record = known.jobs.get(job.name)
        if any(notes):
            parts = [_of_note(job, note or Note(State.QUEUED), record) for note in notes]
            found[job.name] = gathered(job.name, parts, job.parts)
        elif (one := _without_note(job, known, found)) is not None:
            found[job.name] = one
    return found


def _of_note(job: Job, note: Note, record: Record | None) -> JobStatus:
    status = JobStatus(
        job.name,
        note.state,
        reason=note.reason,
        engine_id=str(record["submission_id"]) if record else "",
        nodes=note.nodes,
        restarts=note.restarts,
        elapsed=_since(note.since) if note.since is not None else "",
    )
    if note.state.active and (record is None or record["status"] not in ACTIVE):
        return _cut_short(status, record)
    return status


def _cut_short(status: JobStatus, record: Record | None) -> JobStatus:
    """Return the status of a part whose driver has ended before the part."""
    if record is not None and record["status"] == "STOPPED":
        return replace(status, state=State.CANCELLED, reason="stopped")
    reason = _end_of("its driver", record) if record else "its cluster has ended, or forgotten it"
    return replace(status, state=State.FAILED, reason=reason)


def _without_note(job: Job, known: Known, others: Mapping[str, JobStatus]) -> JobStatus | None:
    """Return the status of a job whose driver has not said anything in this turn."""
    record = known.of_this_turn(job)
    if record is not None:
        starting = JobStatus(
            job.name, State.QUEUED, "its driver starts", "", record["submission_id"]
        )
        return starting if record["status"] in ACTIVE else _cut_short(starting, record)
    blocking = blockers(job, others)
    over = next((other for other in blocking if not other.state.active), None)
    if over:
        return JobStatus(job.name, State.CANCELLED, f"{over.name} did not succeed")
    if not known.at_work:
        return _unsupervised(job, known)
    if blocking:
        return JobStatus(job.name, State.WAITING, f"for {blocking[0].name}")
    return JobStatus(job.name, State.QUEUED, "for the plan's supervisor to submit it")


def _unsupervised(job: Job, known: Known) -> JobStatus | None:
    if known.supervisor is None or known.supervisor["status"] != "FAILED":
        return None
    return JobStatus(job.name, State.FAILED, _end_of("the plan's supervisor", known.supervisor))


def _end_of(who: str, record: Record) -> str:
    """Return the last line that a job of ours has left in Ray's record."""
    said = str(record.get("message") or record["status"]).strip().rpartition("\n")[2]
    return f"{who} ended: {said}"


def _since(start: float) -> str:
    minutes, seconds = divmod(max(0, round(time.time() - start)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
