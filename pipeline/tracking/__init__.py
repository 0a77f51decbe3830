"""All that knows MLflow: runs, artifacts, lineage, the registry and the served model."""

from pipeline.tracking.errors import TrackingError, StoreError
from pipeline.tracking.tracker import Tracker

__all__ = ["Tracker", "TrackingError", "StoreError"]
