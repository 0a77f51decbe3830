"""The methods that every engine has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from orchestration.plan import Plan
from orchestration.states import JobStatus

# A line of `pipeline doctor`: its state (ok, note, missing), its subject, and a sentence.
Finding = tuple[str, str, str]


class Engine(Protocol):
    """Hands jobs to a scheduler and reads their states back; keeps no state of its own."""

    pause: float
    """Seconds to leave between two questions: a controller serves a whole cluster."""

    def scripts(self, plan: Plan, folder: Path) -> dict[str, str]:
        """Return the files that the engine is given, by name; `folder` is the plan's own."""
        ...

    def submit(self, plan: Plan, folder: Path, names: Sequence[str]) -> None:
        """Submit the jobs called `names`, all or none; the plan's other jobs count as submitted.

        Raises `EngineError` when the scheduler refuses.
        """
        ...

    def statuses(self, plan: Plan, folder: Path) -> Mapping[str, JobStatus]:
        """Return the status of each job that the scheduler knows, by the job's name."""
        ...

    def log_files(self, plan: Plan, folder: Path, name: str) -> list[Path]:
        """Return the logs of the newest start of a job, one for each part."""
        ...

    def cancel(self, plan: Plan, folder: Path) -> None:
        """Stop the plan's running jobs and remove its waiting ones."""
        ...
