"""Notes that drivers of Ray jobs keep in the plan's folder, a file for each part of a job."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from orchestration.states import State
from pipeline.common.atomic import write_json
from pipeline.common.documents import parse


@dataclass(frozen=True)
class Note:
    """The state of one part of a job, as its driver knows it."""

    state: State
    reason: str = ""
    nodes: str = ""
    """Names of the nodes it runs on, or ran on last."""
    since: float | None = None
    """When it began to run, in seconds since the epoch."""
    restarts: int = 0


def write_note(spool: Path, label: str, note: Note) -> None:
    """Put the note in place of the last one."""
    write_json(spool / f"{label}.json", asdict(note))


def read_note(spool: Path, label: str) -> Note | None:
    """Return the note, or None where there is none that can be read."""
    try:
        content = parse((spool / f"{label}.json").read_text())
        return Note(**{**content, "state": State(content["state"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
