"""The report as one self-contained web page: no file, script or font from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps
from PIL import Image

from pipeline.common.printable import shown as harmless
from pipeline.evaluation.columns import COSTS, seconds, si
from pipeline.evaluation.compare import PUBLISHED, against
from pipeline.evaluation.metrics import Picture
from pipeline.evaluation.published import published_curves, published_source
from pipeline.evaluation.results import QUALITIES, Comparison, Point, Report
from pipeline.evaluation.scenes import Scene, middle_model

# Published curves that are shown at first; the legend switches on the others.
SHOWN_PUBLISHED = ("VTM (VVC intra)", "BPG 4:4:4", "CCA (2024), as published")
THUMBNAIL = 480


def render(report: Report, scenes: Sequence[Scene]) -> str:
    """Return the page of `report`, with `scenes` embedded."""
    environment = Environment(
        loader=PackageLoader("pipeline.evaluation", "templates"),
        autoescape=True,
        finalize=harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "si": si, "seconds": seconds, "percent": percent, "between": between, "fixed": fixed,
    }  # fmt: skip
    drawn = [_scene(scene, middle_model(report.models).name) for scene in scenes]
    return environment.get_template("report.html.j2").render(
        report=report,
        title=_title(report),
        shown=middle_model(report.models),
        anchors=_anchors(report),
        compared=_compared(report),
        comparisons={(c.curve, c.anchor, c.quality): c for c in report.comparisons},
        qualities=QUALITIES,
        costs=COSTS,
        scenes=drawn,
        scene_views=[scene["views"] for scene in drawn],
        peers_bd=peers_against_jpeg(report),
        series=_series(report),
        published_source=published_source() if _with_published(report) else None,
        style=_asset("report.css"),
        script=_asset("report.js"),
    )


def peers_against_jpeg(report: Report) -> dict[str, Comparison]:
    """Return codec -> BD-rate in PSNR against JPEG, for the classical codecs."""
    points = {peer.name: peer.points for peer in report.peers}
    jpeg = points.pop("jpeg", ())
    return {name: against((name, "jpeg", "psnr"), jpeg, own) for name, own in points.items()}


def _title(report: Report) -> str:
    """Return the name of the curve with the most models, and how many others there are."""
    curves = report.curves()
    first, more = max(curves, key=lambda name: len(curves[name])), len(curves) - 1
    return first if not more else f"{first}, and {more} more curve{'s' if more > 1 else ''}"


def _asset(name: str) -> str:
    return resources.files("pipeline.evaluation").joinpath("templates", name).read_text()


def _with_published(report: Report) -> bool:
    return any(c.anchor.startswith(PUBLISHED) for c in report.comparisons)


def _anchors(report: Report) -> list[tuple[str, str]]:
    """Return (anchor, label) of every codec that BD-rates are against."""
    labels = {peer.name: peer.label for peer in report.peers}
    names = dict.fromkeys(c.anchor for c in _defined(report))
    return [(name, labels.get(name, name)) for name in names]


def _compared(report: Report) -> list[str]:
    """Return the curves that have a BD-rate; those of a single model have none."""
    return list(dict.fromkeys(c.curve for c in _defined(report)))


def _defined(report: Report) -> Sequence[Comparison]:
    """Return the BD-rates that are defined; if none is, all of them, with their reasons."""
    return [c for c in report.comparisons if c.value is not None] or report.comparisons


def _series(report: Report) -> list[dict[str, Any]]:
    """Return the curves of the chart, each with its points from the lowest rate up."""
    series = [
        _line("model", name, "", [(m.name, m.point) for m in models])
        for name, models in report.curves().items()
    ]
    series += [
        _line("peer", peer.label, peer.note, [(p.setting, p) for p in peer.points], peer.name)
        for peer in report.peers
    ]
    for name, points in published_curves().items() if _with_published(report) else ():
        pairs = sorted(zip(points.rates, points.qualities, strict=True))
        drawn = [{"bpp": x, "psnr": y, "ms_ssim_db": None, "what": "published"} for x, y in pairs]
        series.append(
            {"kind": "published", "name": name, "note": "published", "points": drawn,
             "colour": "published", "on": name in SHOWN_PUBLISHED}
        )  # fmt: skip
    return series


def _line(
    kind: str, name: str, note: str, points: Sequence[tuple[str, Point]], colour: str = "model"
) -> dict[str, Any]:
    drawn = [
        {key: point.mean(key) for key in ("bpp", "psnr", "ms_ssim_db")} | {"what": what}
        for what, point in points
    ]
    drawn.sort(key=lambda point: float(point["bpp"] or 0))
    return {"kind": kind, "name": name, "note": note, "points": drawn, "colour": colour, "on": True}


def _scene(scene: Scene, shown: str) -> dict[str, Any]:
    views = [
        {"label": v.label, "bpp": v.bpp, "psnr": v.psnr, "src": lossless(v.samples)}
        for v in scene.views
    ]
    left, top, width, height = scene.box
    labels = [view.label for view in scene.views]
    return {
        "kind": scene.kind, "picture": scene.picture, "views": views, "width": width,
        "height": height, "left": left, "top": top, "rates": _rates(scene),
        "shown": labels.index(shown) if shown in labels else len(labels) - 1,
    }  # fmt: skip


def _rates(scene: Scene) -> dict[str, Any]:
    rates = scene.rates
    bars = [(name, bits / rates.bits) for name, bits in rates.groups.items()]
    return {
        "map": heat(rates.y),
        "most": float(rates.y.max()),
        "thumbnail": thumbnail(scene.whole),
        "width": scene.whole.shape[1],
        "height": scene.whole.shape[0],
        "bars": [*bars, ("hyper", rates.side_bits / rates.bits)],
        "bpp": rates.bits / (scene.whole.shape[0] * scene.whole.shape[1]),
    }


def lossless(samples: Picture) -> str:
    """Return (h, w, 3) uint8 as a data URL that keeps every sample."""
    return _data_url(Image.fromarray(samples), "WEBP", lossless=True, method=4)


def thumbnail(samples: Picture) -> str:
    """Return a small JPEG of the picture as a data URL."""
    image = Image.fromarray(samples)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return _data_url(image, "JPEG", quality=82)


def heat(values: np.ndarray) -> str:
    """Return a (h, w) map of values from 0 up as a data URL, dark where they are low."""
    scaled = values / max(float(values.max()), 1e-9)
    coloured = (colormaps["magma"](scaled)[..., :3] * 255).round().astype(np.uint8)
    return _data_url(Image.fromarray(coloured), "PNG")


def _data_url(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"


def percent(comparison: Comparison | None) -> str:
    """Return a BD-rate with its sign, a dash where it is not defined."""
    if comparison is None or comparison.value is None:
        return "–"
    return f"{comparison.value:+.1f} %".replace("-", "−")


def between(comparison: Comparison) -> str:
    """Return the ends of a BD-rate's interval over the pictures."""
    low, high = comparison.interval or (0.0, 0.0)
    return f"{low:+.0f} to {high:+.0f} %".replace("-", "−")


def fixed(value: float | None, digits: int) -> str:
    """Return a number with `digits` decimals, a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"
