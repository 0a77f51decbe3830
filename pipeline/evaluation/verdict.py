"""Compares the best curve of models with the other codecs, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import PchipInterpolator

from pipeline.codec.architectures import load
from pipeline.evaluation.bdrate import RDCurve
from pipeline.evaluation.results import Comparison, ModelResult, Report, curve

YARDSTICK = "jpeg"


def verdict(report: Report) -> tuple[str, ...]:
    """Return sentences that compare the best curve of models with JPEG and the other codecs.

    The best curve has the lowest BD-rate against JPEG or, if no curve has one, the most models. The
    other curves are in the report's table.
    """
    curves = report.curves()
    if not curves:
        return ()
    ranked = sorted(curves, key=lambda name: (_bd_rate(name, report), -len(curves[name])))
    best, *others = ranked
    # A single model has no BD-rate; the sentence about that is left out.
    sentences = _against_jpeg(best, curves[best], report)[: None if len(curves[best]) > 1 else 1]
    sentences += _ranking(best, report)
    if others:
        sentences.append(f"The table of BD-rates has the other curves of models: {_join(others)}.")
    sizes = [sentence for models in curves.values() for sentence in _size(models)]
    return (*sentences, *dict.fromkeys(sizes))


def rate_at(points: RDCurve, quality: float) -> float | None:
    """Return the rate at which a curve reaches `quality` (dB); None beyond its ends."""
    order = np.argsort(points.qualities)
    qualities = np.asarray(points.qualities, dtype=np.float64)[order]
    rates = np.asarray(points.rates, dtype=np.float64)[order]
    sound = len(rates) > 1 and bool((np.diff(qualities) > 0).all())
    if not sound or not qualities[0] <= quality <= qualities[-1]:
        return None
    return float(np.exp(PchipInterpolator(qualities, np.log(rates))(quality)))


def _against_jpeg(name: str, models: Sequence[ModelResult], report: Report) -> list[str]:
    peer = next((peer for peer in report.peers if peer.name == YARDSTICK), None)
    if peer is None:
        return [f"{name} was not compared with JPEG here."]
    best = models[-1].point
    bpp, psnr = best.mean("bpp") or 0.0, best.mean("psnr") or 0.0
    start = f"At {bpp:.3f} bpp {name} reaches {psnr:.2f} dB PSNR"
    points = curve(peer.points, "psnr")
    rate = None if points is None else rate_at(points, psnr)
    if rate is None:
        return [
            f"{start}, which lies outside the range where JPEG was measured.",
            *_bd(name, report),
        ]
    ratio = bpp / rate
    how = (
        f"the model spends {ratio:.1f} times the bits"
        if ratio >= 1
        else f"the model saves {100 * (1 - ratio):.0f} % of the bits"
    )
    return [f"{start}; JPEG gets there with {rate:.3f} bpp: {how}.", *_bd(name, report)]


def _bd(name: str, report: Report) -> list[str]:
    against = _find(report, name, YARDSTICK)
    if against is None:
        return []
    if against.value is None:
        return [f"Its BD-rate against JPEG is not defined: {against.reason}."]
    tail = "it beats JPEG" if against.value < 0 else "it does not beat JPEG"
    rate = f"{against.value:+.1f} %"
    return [f"Over the qualities both reach, its BD-rate against JPEG is {rate}: {tail}."]


def _ranking(name: str, report: Report) -> list[str]:
    better: list[str] = []
    worse: list[str] = []
    for peer in report.peers:
        against = _find(report, name, peer.name)
        if against is not None and against.value is not None:
            (worse if against.value < 0 else better).append(peer.label)
    if not better and not worse:
        return []
    if not better:
        return [f"It needs fewer bits than every codec compared here ({_join(worse)})."]
    if not worse:
        return [f"Every codec compared here needs fewer bits ({_join(better)})."]
    return [f"It needs fewer bits than {_join(worse)}, more than {_join(better)}."]


def _size(models: Sequence[ModelResult]) -> list[str]:
    millions, architecture = models[0].parameters / 1e6, load(models[0].architecture)
    published = architecture.published_millions
    if published is None or millions > published / 2:
        return []
    return [
        f"A model of {millions:.2f} million parameters, where the published {architecture.title} "
        f"model has {published}, is only good for trying out the pipeline."
    ]


def _bd_rate(name: str, report: Report) -> float:
    """Return the BD-rate of a curve against JPEG, infinite if there is none."""
    against = _find(report, name, YARDSTICK)
    return math.inf if against is None or against.value is None else against.value


def _find(report: Report, name: str, anchor: str) -> Comparison | None:
    return next(
        (c for c in report.comparisons if (c.curve, c.anchor, c.quality) == (name, anchor, "psnr")),
        None,
    )


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
