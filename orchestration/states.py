"""What an engine says of a job, in words that are the same for all engines."""

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
    """The engine knows nothing of it, and its work is not there."""

    @property
    def active(self) -> bool:
        """Whether the engine has still something to do."""
        return self in (State.WAITING, State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class JobStatus:
    """What is known of one job."""

    name: str
    state: State
    reason: str = ""
    """Why it waits or did not succeed; of an array, how many parts are where."""
    engine_id: str = ""
    """What the engine calls it."""
    elapsed: str = ""
    """How long it has run, as the engine writes it."""
    left: str = ""
    """What is left of its time limit."""
    nodes: str = ""
    restarts: int = 0
    """How often it was stopped or lost its node and was queued again."""


def gathered(name: str, parts: Sequence[JobStatus]) -> JobStatus:
    """Return the status of an array from that of its parts: the most urgent one speaks for all."""
    if len(parts) == 1:
        return replace(parts[0], name=name)
    order = [State.RUNNING, State.FAILED, State.QUEUED, State.WAITING, State.CANCELLED, State.DONE]
    order.append(State.UNKNOWN)
    counts = {state: sum(part.state == state for part in parts) for state in order}
    state = next(state for state in order if counts[state])
    shown = next(part for part in parts if part.state == state)
    words = [f"{count} {state} " for state, count in counts.items() if count]
    reason = "parts: " + ", ".join(word.strip() for word in words)
    if shown.reason and state != State.DONE:
        reason += f" ({shown.reason})"
    return replace(shown, name=name, reason=reason, engine_id=shown.engine_id.partition("_")[0])


def blocked_by(job: Job, known: Mapping[str, JobStatus]) -> JobStatus | None:
    """Return the first status in `known` of a job that `job` needs and that is not done."""
    found = (known[name] for name in job.needs if name in known)
    return next((status for status in found if status.state != State.DONE), None)
