"""BD-rates of the models' curves against every other codec of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.evaluation.bdrate import BDRateError, RDCurve, bd_rate, common_range
from pipeline.evaluation.results import QUALITIES, Comparison, ModelResult, PeerResult, curve

PUBLISHED = "published: "


def compare(
    curves: Mapping[str, Sequence[ModelResult]],
    peers: Sequence[PeerResult],
    published: Mapping[str, RDCurve],
) -> tuple[Comparison, ...]:
    """Return each curve of models against each peer, other curve and published curve (PSNR)."""
    found = []
    for name, models in curves.items():
        for quality in QUALITIES:
            tested = curve([model.point for model in models], quality)
            anchors = {peer.name: curve(peer.points, quality) for peer in peers}
            anchors |= {
                other: curve([model.point for model in rest], quality)
                for other, rest in curves.items()
                if other != name
            }
            if quality == "psnr":
                anchors |= {PUBLISHED + codec: points for codec, points in published.items()}
            found += [against(name, other, quality, a, tested) for other, a in anchors.items()]
    return tuple(found)


def against(
    name: str, other: str, quality: str, anchor: RDCurve | None, tested: RDCurve | None
) -> Comparison:
    """Return the BD-rate of `tested`, called `name`, against `anchor`, called `other`."""
    if anchor is None or tested is None:
        reason = f"{QUALITIES[quality]} is not defined on some picture of the set"
        return Comparison(name, other, quality, None, reason=reason)
    try:
        value = bd_rate(anchor, tested)
    except BDRateError as error:
        return Comparison(name, other, quality, None, reason=str(error))
    low, high = common_range(anchor, tested)
    return Comparison(name, other, quality, value, low, high)
