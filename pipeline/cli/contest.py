"""Champion against challenger on real pictures: measured by evaluation, decided by tracking."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from pipeline.evaluation.pictures import Source
    from pipeline.tracking import Version
    from pipeline.tracking.promotion import Curve, Decision

    Measure = Callable[[Version], "ModelResult"]
    from pipeline.evaluation.results import ModelResult

QUALITY = {"ms-ssim": "ms_ssim_db"}


def contest(name: str, data: Path, device: str = "auto") -> Decision:
    """Measure both trainings of the model `name` on the pictures in `data` and decide.

    Raises TrackingError when there is no challenger or they are not comparable, EvaluationError
    when there are no pictures.
    """
    from pipeline.evaluation import find_pictures
    from pipeline.evaluation.pictures import read_sources
    from pipeline.tracking import TrackingError
    from pipeline.tracking.promotion import contenders, decide, unchallenged

    old, new = contenders(name)
    sources = read_sources(find_pictures(data))
    if not old:
        return unchallenged(name, new[0])
    if old[0].distortion != new[0].distortion:
        raise TrackingError(
            f"{old[0].uri} was trained for {old[0].distortion} and {new[0].uri} for "
            f"{new[0].distortion}: they are no rivals, register them under two names"
        )
    curves = _curves([old, new], sources, device)
    return decide(name, (old[0], curves[0]), (new[0], curves[1]), _bd_rate)


def _curves(
    trainings: Sequence[Sequence[Version]], sources: Sequence[Source], device: str
) -> list[Curve]:
    import numpy as np

    from pipeline.cli.progress import progress
    from pipeline.evaluation.learned import ModelSpec, measure_model, pick_device
    from pipeline.tracking import resolve_model
    from pipeline.tracking.promotion import Curve

    quality = QUALITY.get(trainings[0][0].distortion or "", "psnr")
    curves = []
    with tempfile.TemporaryDirectory() as folder, progress("Measuring", unit="pictures") as report:
        for training in trainings:
            points = [
                measure_model(
                    ModelSpec(version.uri, resolve_model(version.uri)),
                    sources,
                    Path(folder, version.fingerprint),
                    pick_device(device),
                    report,
                ).point.pictures
                for version in training
            ]
            rates = np.array([[picture.bpp for picture in point] for point in points])
            values = np.array([[getattr(p, quality) for p in point] for point in points], float)
            curves.append(Curve(rates, values))
    return curves


def _bd_rate(
    anchor_rates: npt.NDArray[np.float64],
    anchor_qualities: npt.NDArray[np.float64],
    rates: npt.NDArray[np.float64],
    qualities: npt.NDArray[np.float64],
) -> float:
    from pipeline.evaluation import RDCurve, bd_rate

    anchor = RDCurve(anchor_rates.tolist(), anchor_qualities.tolist())
    return bd_rate(anchor, RDCurve(rates.tolist(), qualities.tolist()))
