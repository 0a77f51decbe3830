"""Reads the progress and pace of a run, from its own records or from tags in the store."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from pipeline.tracking.errors import StoreError, TrackingError
from pipeline.tracking.records import DAMAGED, Record, read_record
from pipeline.tracking.resolving import resolved
from pipeline.tracking.store import reading_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

STEP_TAG = "progress.step"
PACE_TAG = "progress.seconds_per_step"
SECONDS_TO_ANSWER = 5.0
SECONDS_TO_CONNECT = 2.0
# The bytes at the end of a run's records that its progress is read from.
LAST_BYTES = 1 << 16


@dataclass(frozen=True)
class RunProgress:
    """A run's last step, its pace (None: not known yet) and MLflow's word for its status."""

    step: int
    seconds_per_step: float | None
    status: str


class Pace:
    """Measures the pace of the records that are sent, since this start of the run."""

    def __init__(self) -> None:
        """Start with nothing sent."""
        self._before: tuple[int, int] | None = None

    def tags(self, records: Sequence[Record]) -> dict[str, str]:
        """Return the tags after `records` of metrics; system metrics have steps of their own."""
        points = [(record["step"], record["time"]) for record in records if not _is_system(record)]
        if not points:
            return {}
        last = max(points)
        first, self._before = self._before or min(points), last
        tags = {STEP_TAG: str(last[0])}
        if last[0] > first[0]:
            seconds = (last[1] - first[1]) / 1000 / (last[0] - first[0])
            tags[PACE_TAG] = f"{seconds:.6g}"
        return tags


def spooled_progress(folder: Path) -> RunProgress | None:
    """Return the progress of the run in `folder`, from its records there; None if it has none.

    This needs no store, and is ahead of the store. The pace is that of the last records since the
    run was started.
    """
    try:
        with (folder / "tracking" / "spool.jsonl").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LAST_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    status, step = "RUNNING", None
    points: list[tuple[int, int]] = []
    for record in filter(None, map(_record, lines)):
        kind = record.get("kind")
        if kind == "begin":
            status, points = "RUNNING", []
        elif kind == "end":
            status = str(record.get("status"))
        elif kind == "metrics" and not _is_system(record):
            step = int(record["step"])
            points.append((step, int(record["time"])))
    if step is None:
        return None
    return RunProgress(step, _pace(points), status)


def _record(line: bytes) -> Record | None:
    """Return the record in a line; None if a part of the line is missing."""
    record = read_record(line)
    return None if record["kind"] == DAMAGED else record


def _is_system(record: Record) -> bool:
    """Tell whether a record has system metrics, which count steps of their own."""
    return all(name.startswith("system/") for name in record["values"])


def _pace(points: Sequence[tuple[int, int]]) -> float | None:
    if not points or points[-1][0] <= points[0][0]:
        return None
    (first, began), (last, ended) = points[0], points[-1]
    return (ended - began) / 1000 / (last - first)


def run_progress(reference: str) -> RunProgress | None:
    """Return the progress of a run; None if it, or its store, can't be reached within seconds."""
    if not _worth_asking():
        return None
    answer: list[RunProgress] = []
    try:
        where = reading_client()
    except (TrackingError, StoreError):
        return None
    if where is None:
        return None
    # A thread, because a host that swallows packets would hold the caller for minutes.
    thread = threading.Thread(target=lambda: _ask(where, reference, answer), daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER)
    return answer[0] if answer else None


def _worth_asking() -> bool:
    """Return False for a store that certainly does not answer, as MLflow takes seconds to load.

    It is an embedded store that does not exist, or a server whose port nobody listens on.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    if uri.startswith("sqlite:///"):
        return Path(uri.removeprefix("sqlite:///")).exists()
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname or getproxies():
        return True
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname, port), timeout=SECONDS_TO_CONNECT):
            return True
    except (OSError, ValueError):
        return False


def _ask(where: MlflowClient, reference: str, answer: list[RunProgress]) -> None:
    try:
        run = where.get_run(resolved(where, reference) or "")
    except Exception:  # whatever it is, no progress can be shown
        return
    tags = run.data.tags
    pace = tags.get(PACE_TAG)
    answer.append(
        RunProgress(int(tags.get(STEP_TAG, 0)), float(pace) if pace else None, str(run.info.status))
    )
