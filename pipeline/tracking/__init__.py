"""Everything about MLflow: runs, artifacts, lineage, the registry and the served model."""

import os

# Set before MLflow is imported, which would report its use to its makers. The thread that reports
# changes the environment while requests read it, and one request in thousands fails.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from pipeline.tracking.delivery import deliver
from pipeline.tracking.errors import StoreError, TrackingError
from pipeline.tracking.lineage import Lineage, lineage
from pipeline.tracking.models import resolve_model
from pipeline.tracking.progress import RunProgress, run_progress, spooled_progress
from pipeline.tracking.registry import Version, list_versions, measurements, register_model
from pipeline.tracking.tracker import Tracker

__all__ = [
    "Lineage",
    "RunProgress",
    "StoreError",
    "Tracker",
    "TrackingError",
    "Version",
    "deliver",
    "lineage",
    "list_versions",
    "measurements",
    "register_model",
    "resolve_model",
    "run_progress",
    "spooled_progress",
]
