"""How far a run is and how fast it goes, as tags that one request reads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.tracking.errors import StoreError, TrackingError
from pipeline.tracking.spool import Record
from pipeline.tracking.store import client

if TYPE_CHECKING:
    from mlflow import MlflowClient

STEP_TAG = "progress.step"
PACE_TAG = "progress.seconds_per_step"
SECONDS_TO_ANSWER = 5.0


@dataclass(frozen=True)
class RunProgress:
    """A run's last step, its pace (None: not known yet) and MLflow's word for its status."""

    step: int
    seconds_per_step: float | None
    status: str


class Pace:
    """Steps and times of what was sent last, since this start of the run."""

    def __init__(self) -> None:
        """Nothing was sent yet."""
        self._before: tuple[int, int] | None = None

    def tags(self, records: Sequence[Record]) -> dict[str, str]:
        """Return the tags after `records` (metrics); system metrics count steps of their own."""
        points = [
            (record["step"], record["time"])
            for record in records
            if not all(name.startswith("system/") for name in record["values"])
        ]
        if not points:
            return {}
        last = max(points)
        first, self._before = self._before or min(points), last
        tags = {STEP_TAG: str(last[0])}
        if last[0] > first[0]:
            seconds = (last[1] - first[1]) / 1000 / (last[0] - first[0])
            tags[PACE_TAG] = f"{seconds:.6g}"
        return tags


def run_progress(run_id: str) -> RunProgress | None:
    """Return how far the run is; None where it, or its store, can't be reached within seconds."""
    answer: list[RunProgress] = []
    try:
        where = client()
    except (TrackingError, StoreError):
        return None
    # A thread, because a host that swallows packets would hold the caller for minutes.
    thread = threading.Thread(target=lambda: _ask(where, run_id, answer), daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    return answer[0] if answer else None


def _ask(where: MlflowClient, run_id: str, answer: list[RunProgress]) -> None:
    try:
        run = where.get_run(run_id)
    except Exception:  # whatever it is, there is no progress to tell
        return
    tags = run.data.tags
    pace = tags.get(PACE_TAG)
    answer.append(
        RunProgress(int(tags.get(STEP_TAG, 0)), float(pace) if pace else None, str(run.info.status))
    )
