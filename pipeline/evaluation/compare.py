"""BD-rates of the models' curves against every other codec of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pipeline.evaluation.bdrate import BDRateError, RDCurve, bd_rate, common_range
from pipeline.evaluation.bootstrap import bd_rate_interval, by_picture
from pipeline.evaluation.results import (
    QUALITIES,
    Comparison,
    ModelResult,
    PeerResult,
    Point,
    curve,
)

PUBLISHED = "published: "


def compare(
    curves: Mapping[str, Sequence[ModelResult]],
    peers: Sequence[PeerResult],
    published: Mapping[str, RDCurve],
) -> tuple[Comparison, ...]:
    """Return each curve of models against each peer, other curve and published curve (PSNR)."""
    return tuple(_all(curves, peers, published))


def _all(
    curves: Mapping[str, Sequence[ModelResult]],
    peers: Sequence[PeerResult],
    published: Mapping[str, RDCurve],
) -> Iterator[Comparison]:
    ours = {name: [model.point for model in models] for name, models in curves.items()}
    theirs = {peer.name: list(peer.points) for peer in peers}
    for name, tested in ours.items():
        rest = {other: points for other, points in ours.items() if other != name}
        for quality in QUALITIES:
            for other, anchor in (theirs | rest).items():
                yield against((name, other, quality), anchor, tested)
        for codec, points in published.items():
            names = (name, PUBLISHED + codec, "psnr")
            yield _value(names, points, curve(tested, "psnr"))


def against(
    names: tuple[str, str, str], anchor: Sequence[Point], tested: Sequence[Point]
) -> Comparison:
    """Return the BD-rate of `tested` against `anchor`, with its interval over the pictures.

    `names` has the tested curve, the anchor, and the quality that they are compared in.
    """
    quality = names[2]
    comparison = _value(names, curve(anchor, quality), curve(tested, quality))
    if comparison.value is None:
        return comparison
    try:
        interval = bd_rate_interval(by_picture(anchor, quality), by_picture(tested, quality))
    except BDRateError:
        return comparison  # On too many drawn sets the curves don't rise: there is no interval.
    return replace(comparison, interval=(interval.low, interval.high))


def _value(
    names: tuple[str, str, str], anchor: RDCurve | None, tested: RDCurve | None
) -> Comparison:
    if anchor is None or tested is None:
        reason = f"{QUALITIES[names[2]]} is not defined on some picture of the set"
        return Comparison(*names, None, reason=reason)
    try:
        value = bd_rate(anchor, tested)
    except BDRateError as error:
        return Comparison(*names, None, reason=str(error))
    low, high = common_range(anchor, tested)
    return Comparison(*names, value, low, high)
