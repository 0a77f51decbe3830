"""What every engine can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from orchestration.plan import Plan
from orchestration.states import JobStatus

# What `doctor` prints: state (ok, note, missing), what it is about, and the sentence.
Finding = tuple[str, str, str]


class Engine(Protocol):
    """Hands jobs to a scheduler and reads back what became of them; keeps nothing itself."""

    pause: float
    """Seconds to leave between two questions: a controller serves a whole cluster."""

    def scripts(self, plan: Plan, folder: Path) -> dict[str, str]:
        """Return the files that the engine is given, by name; `folder` is the plan's own."""
        ...

    def submit(self, plan: Plan, folder: Path, names: Sequence[str]) -> None:
        """Hand over the jobs called `names`, all or none; others of the plan count as there.

        Raises `EngineError` when the scheduler refuses.
        """
        ...

    def statuses(self, plan: Plan, folder: Path) -> Mapping[str, JobStatus]:
        """Return what the scheduler knows, by name of the job; unknown jobs are left out."""
        ...

    def log_files(self, plan: Plan, folder: Path, name: str) -> list[Path]:
        """Return the logs of the newest start of a job, one for each part."""
        ...

    def cancel(self, plan: Plan, folder: Path) -> None:
        """Stop what runs and forget what waits."""
        ...
