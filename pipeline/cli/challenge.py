"""Champion or challenger: evaluation measures both on pictures, tracking decides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.evaluation import Report
    from pipeline.evaluation.bootstrap import PictureCurve
    from pipeline.tracking import Version
    from pipeline.tracking.promotion import Decision, Gain

DRAWS = 1000
YARDSTICK = "jpeg"
# The quality measure that compares codecs trained for a distortion; for all others PSNR.
QUALITY = {"ms-ssim": "ms_ssim_db"}


def decide(name: str, data: Path, out: Path, device: str = "auto") -> Decision:
    """Measure both trainings of model `name` on the pictures in `data`, and move the alias.

    Writes the evaluation to `out`. Raises TrackingError if there is no challenger or the two can't
    be compared, EvaluationError if there are no pictures.
    """
    from pipeline.common.progress import progress
    from pipeline.tracking import TrackingError, resolve_model
    from pipeline.tracking.measured import measured
    from pipeline.tracking.promotion import contenders, enact, judge, unchallenged

    old, new = contenders(name)
    # Imported only now, because the library that draws curves takes seconds to load.
    from pipeline.evaluation import ModelSpec, evaluate, find_pictures

    pictures = find_pictures(data)
    if old and old[0].distortion != new[0].distortion:
        raise TrackingError(
            f"{old[0].uri} was trained for {old[0].distortion} and {new[0].uri} for "
            f"{new[0].distortion}: they can't be compared; register them under two names"
        )
    specs = [ModelSpec(version.uri, resolve_model(version.uri)) for version in (*old, *new)]
    with progress("Measuring", unit="steps") as shown:
        report = evaluate(specs, pictures, out, [YARDSTICK], shown, device=device)
    if old:
        gain = _gain(report, old, new)
        decision = judge(name, old[0], new[0], gain, len(pictures))
    else:
        decision = unchallenged(name, new[0])
    results = out / "results.json"
    enact(decision, {v.uri: measured(results, v.fingerprint) for v in (*old, *new)})
    return decision


def _gain(report: Report, old: Sequence[Version], new: Sequence[Version]) -> Gain | str:
    """Return the gain in BD-rate; curves that do not overlap are compared through JPEG's."""
    from pipeline.evaluation import BDRateError
    from pipeline.evaluation.bootstrap import bd_rate_interval, by_picture, gain_interval
    from pipeline.tracking.promotion import Gain

    quality = QUALITY.get(new[0].distortion or "", "psnr")
    try:
        champion = _curve(report, old, quality)
        challenger = _curve(report, new, quality)
        jpeg = by_picture(report.peers[0].points, quality) if report.peers else None
    except BDRateError as error:
        return str(error)
    try:
        gain = bd_rate_interval(champion, challenger, draws=DRAWS)
        return Gain(gain.value, gain.low, gain.high, "BD-rate")
    except BDRateError as error:
        reason = f"BD-rate is not defined, {error}"
    if jpeg is None:
        return reason
    try:
        gain = gain_interval(jpeg, champion, challenger, draws=DRAWS)
    except BDRateError as error:
        return f"{reason}; nor can they be compared through JPEG, {error}"
    return Gain(gain.value, gain.low, gain.high, "at equal quality, by way of JPEG's curve")


def _curve(report: Report, versions: Sequence[Version], quality: str) -> PictureCurve:
    from pipeline.evaluation.bootstrap import by_picture

    # A version that has several rates was measured at each of them.
    ours = {version.fingerprint for version in versions}
    points = [model.point for model in report.models if model.fingerprint in ours]
    return by_picture(points, quality)
