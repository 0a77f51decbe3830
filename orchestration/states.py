"""Statuses of jobs, the same for all engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestration.plan import Job


class State(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    """For other jobs of the plan."""
    QUEUED = "queued"
    """It could start, and waits for resources."""
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """By a person, or because a job that it needs did not succeed."""
    UNKNOWN = "unknown"
    """The engine does not know it, and its work is not there."""

    @property
    def active(self) -> bool:
        """Whether the engine has still something to do."""
        return self in (State.WAITING, State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class JobStatus:
    """The state of one job, and what its engine tells about it."""

    name: str
    state: State
    reason: str = ""
    """Why it waits or did not succeed; for an array, also how many parts are in which state."""
    progress: str = ""
    """For an array: how many of its parts are done."""
    engine_id: str = ""
    """What the engine calls it."""
    elapsed: str = ""
    """How long it has run, as the engine writes it."""
    left: str = ""
    """What is left of its time limit."""
    nodes: str = ""
    restarts: int = 0
    """How often it was stopped or lost its node and was queued again."""


def gathered(name: str, parts: Sequence[JobStatus], total: int = 1) -> JobStatus:
    """Return the status of an array of `total` parts: the most urgent part speaks for all."""
    if total == 1 and len(parts) == 1:
        return replace(parts[0], name=name)
    order = [State.RUNNING, State.FAILED, State.QUEUED, State.WAITING, State.CANCELLED, State.DONE]
    order.append(State.UNKNOWN)
    counts = {state: sum(part.state == state for part in parts) for state in order}
    state = next(state for state in order if counts[state])
    shown = next(part for part in parts if part.state == state)
    others = [f"{count} {state}" for state, count in counts.items() if count]
    reason = f"parts: {', '.join(others)}" if len(others) > 1 else ""
    if shown.reason and state != State.DONE:
        reason = f"{reason} ({shown.reason})" if reason else shown.reason
    engine_id = shown.engine_id.partition("_")[0]
    progress = f"{counts[State.DONE]} of {total} parts"
    return replace(shown, name=name, reason=reason, engine_id=engine_id, progress=progress)


def blockers(job: Job, known: Mapping[str, JobStatus]) -> list[JobStatus]:
    """Return the statuses in `known` of the jobs that `job` needs and that are not done."""
    needed = (known[name] for name in job.needs if name in known)
    return [status for status in needed if status.state != State.DONE]
