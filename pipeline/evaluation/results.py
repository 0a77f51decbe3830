"""The results of an evaluation, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean
from typing import Any

from pipeline.codec.architectures import DEFAULT
from pipeline.evaluation.bdrate import RDCurve

# The qualities that curves are drawn and compared in, with their labels.
QUALITIES = {"psnr": "PSNR", "ms_ssim_db": "MS-SSIM"}


@dataclass(frozen=True)
class Measurement:
    """One picture through one codec at one setting.

    `bytes` is the size of the file on disk and `bpp` eight times that per pixel. `psnr` and
    `ms_ssim_db` are in dB; MS-SSIM is None if the picture is too small for it. Seconds are
    wall-clock.
    """

    name: str
    bytes: int
    bpp: float
    psnr: float
    ms_ssim: float | None
    ms_ssim_db: float | None
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Point:
    """A codec at one setting over the whole set; each mean is over pictures, not over pixels."""

    setting: str
    pictures: tuple[Measurement, ...]

    def mean(self, metric: str) -> float | None:
        """Return the mean of a Measurement's field over the set; None if a picture lacks it."""
        values = [getattr(picture, metric) for picture in self.pictures]
        return None if any(value is None for value in values) else fmean(values)

    def means(self) -> dict[str, float | None]:
        """Return every mean that is reported, by name."""
        names = ("bpp", "psnr", "ms_ssim", "ms_ssim_db", "encode_seconds", "decode_seconds")
        return {name: self.mean(name) for name in names}


def curve(points: Sequence[Point], quality: str) -> RDCurve | None:
    """Return the points' mean rate against mean `quality`; None if a point lacks it."""
    qualities = [point.mean(quality) for point in points]
    present = [value for value in qualities if value is not None]
    if len(present) < len(points):
        return None
    return RDCurve([fmean(m.bpp for m in point.pictures) for point in points], present)


@dataclass(frozen=True)
class ModelResult:
    """A model at one rate: its identity, its costs and its measurements."""

    name: str
    curve: str
    path: str
    fingerprint: str
    rate_weight: float | None
    distortion: str | None
    point: Point
    parameters: int
    kmac_per_pixel: float
    peak_memory_bytes: int
    parts: tuple[dict[str, Any], ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    # The measured rate of a model that has several.
    rate: float | None = None
    architecture: str = DEFAULT

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        own = [f.name for f in fields(self) if f.name != "point"]
        data = {name: getattr(self, name) for name in own} | {"parts": list(self.parts)}
        return data | self.point.means() | {"pictures": [asdict(m) for m in self.point.pictures]}


@dataclass(frozen=True)
class PeerResult:
    """A classical codec over its settings, the lowest rate first."""

    name: str
    label: str
    note: str
    version: str
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        points = [
            {"setting": point.setting}
            | point.means()
            | {"pictures": [asdict(m) for m in point.pictures]}
            for point in self.points
        ]
        return {
            "label": self.label, "note": self.note, "version": self.version, "points": points,
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """BD-rate of a curve of models against another codec, in percent of its rate.

    If it is not defined, `value` is None and `reason` tells why. `low` to `high` is the range of
    quality (dB) that it covers. `interval` holds the values of 95 % of the sets of pictures that
    are drawn from this one.
    """

    curve: str
    anchor: str
    quality: str
    value: float | None
    low: float | None = None
    high: float | None = None
    interval: tuple[float, float] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """Everything that an evaluation measured: the content of results.json."""

    created: str
    pictures: tuple[dict[str, Any], ...]
    models: tuple[ModelResult, ...]
    peers: tuple[PeerResult, ...]
    absent: dict[str, str]
    comparisons: tuple[Comparison, ...]
    machine: dict[str, Any]
    verdict: tuple[str, ...] = ()

    def curves(self) -> dict[str, list[ModelResult]]:
        """Return the models by the curve they belong to, the lowest rate first."""
        curves: dict[str, list[ModelResult]] = {}
        for model in self.models:
            curves.setdefault(model.curve, []).append(model)
        for models in curves.values():
            models.sort(key=lambda model: model.point.mean("bpp") or 0.0)
        return curves

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, format 1."""
        bd: dict[str, dict[str, dict[str, Any]]] = {}
        for item in self.comparisons:
            entry = {
                key: value
                for key, value in asdict(item).items()
                if key not in ("curve", "anchor", "quality")
            }
            bd.setdefault(item.curve, {}).setdefault(item.anchor, {})[item.quality] = entry
        return {
            "format": 1,
            "created": self.created,
            "pictures": list(self.pictures),
            "models": [model.to_dict() for model in self.models],
            "peers": {peer.name: peer.to_dict() for peer in self.peers},
            "absent": self.absent,
            "bd_rate": bd,
            "verdict": list(self.verdict),
            "machine": self.machine,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return the content of results.csv: a row for each picture, codec and setting."""
        points = [("model", m.name, m.point) for m in self.models]
        points += [("peer", p.name, point) for p in self.peers for point in p.points]
        return [
            {"kind": kind, "codec": codec, "setting": point.setting, "picture": m.name}
            | {key: value for key, value in asdict(m).items() if key != "name"}
            for kind, codec, point in points
            for m in point.pictures
        ]


def curves_of(content: dict[str, Any]) -> Report:
    """Return the part of a report that its curves need, from the content of results.json."""
    models = tuple(
        ModelResult(
            **{f.name: m[f.name] for f in fields(ModelResult) if f.name in m},
            point=_point("", m["pictures"]),
        )
        for m in content["models"]
    )
    peers = tuple(
        PeerResult(
            name, p["label"], p["note"], p["version"],
            tuple(_point(point["setting"], point["pictures"]) for point in p["points"]),
        )
        for name, p in content["peers"].items()
    )  # fmt: skip
    return Report(content["created"], (), models, peers, {}, (), content["machine"])


def _point(setting: str, pictures: Sequence[dict[str, Any]]) -> Point:
    return Point(setting, tuple(Measurement(**picture) for picture in pictures))
