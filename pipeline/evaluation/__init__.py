"""Rate, distortion, BD-rate, the classical codecs, plots and the report."""

from __future__ import annotations

from pipeline.evaluation.bdrate import BDRateError, RDCurve, bd_rate
from pipeline.evaluation.errors import EvaluationError, MeasurementError
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.learned import ModelSpec
from pipeline.evaluation.metrics import decibels, ms_ssim, psnr
from pipeline.evaluation.pictures import find_pictures
from pipeline.evaluation.results import Report

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
