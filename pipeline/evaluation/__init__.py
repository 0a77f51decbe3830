"""Rate, distortion, BD-rate, the classical codecs, plots and the report."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.errors import EvaluationError, MeasurementError

if TYPE_CHECKING:
    from pipeline.evaluation.bdrate import BDRateError, RDCurve, bd_rate
    from pipeline.evaluation.learned import ModelSpec
    from pipeline.evaluation.metrics import decibels, ms_ssim, psnr
    from pipeline.evaluation.pictures import find_pictures
    from pipeline.evaluation.results import Report
    from pipeline.evaluation.run import evaluate

__all__ = [
    "BDRateError",
    "EvaluationError",
    "MeasurementError",
    "ModelSpec",
    "RDCurve",
    "Report",
    "bd_rate",
    "decibels",
    "evaluate",
    "find_pictures",
    "ms_ssim",
    "psnr",
]

# Imported on first access, so that a training process that needs a metric loads no plots.
_LATER = {
    "BDRateError": "bdrate",
    "ModelSpec": "learned",
    "RDCurve": "bdrate",
    "Report": "results",
    "bd_rate": "bdrate",
    "decibels": "metrics",
    "evaluate": "run",
    "find_pictures": "pictures",
    "ms_ssim": "metrics",
    "psnr": "metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
