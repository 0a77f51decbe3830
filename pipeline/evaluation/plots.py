"""The rate-distortion curves as a still picture, for papers and for tracking.

    python -m pipeline.evaluation.plots report/results.json curve.svg

draws them again from the numbers of an evaluation.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.common.atomic import write_bytes
from pipeline.common.documents import parse
from pipeline.common.printable import printable
from pipeline.evaluation.bdrate import RDCurve
from pipeline.evaluation.results import QUALITIES, Report, curve, curves_of

LONGEST = 80  # characters of a name in the legend
INK, GRID = "#1f2328", "#e3e5e8"
MODEL_COLOURS = ("#c2410c", "#0f766e", "#7c3aed", "#be185d")
PEER_COLOURS = {
    "jpeg": "#8c8c8c", "jpeg2000": "#a58b5b", "webp": "#6b8fb3", "heic": "#b07aa1",
    "avif": "#3b6ea8", "jxl": "#5b8c5a", "vvc": "#1f2328",
}  # fmt: skip


def draw_curves(report: Report, suffix: str) -> bytes:
    """Return a figure of both qualities against rate as `suffix` ("png" or "svg") bytes."""
    figure = Figure(figsize=(11, 4.8), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, (quality, label) in zip(figure.subplots(1, 2), QUALITIES.items(), strict=True):
        _draw(axes, report, quality, label)
    buffer = io.BytesIO()
    # No date in the file: the same results give the same bytes.
    metadata = {"Date": None} if suffix == "svg" else {}
    figure.savefig(buffer, format=suffix, dpi=160, metadata=metadata)
    return buffer.getvalue()


def _draw(axes: Axes, report: Report, quality: str, label: str) -> None:
    for peer in report.peers:
        _line(axes, curve(peer.points, quality), peer.label, PEER_COLOURS[peer.name], thin=True)
    for i, (name, models) in enumerate(report.curves().items()):
        colour = MODEL_COLOURS[i % len(MODEL_COLOURS)]
        _line(axes, curve([model.point for model in models], quality), name, colour, thin=False)
    axes.set_xlabel("bits per pixel, of files on disk", color=INK)
    axes.set_ylabel(f"{label}, dB", color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def _line(axes: Axes, points: RDCurve | None, name: str, colour: str, thin: bool) -> None:
    if points is None:
        return
    xs, ys = _sorted(points)
    width, size = (1.2, 3) if thin else (2.4, 6)
    # Dollars in a name begin no formula, and a name that begins with _ is shown too.
    label = printable(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…").replace(
        "$", r"\$"
    )
    (line,) = axes.plot(xs, ys, color=colour, linewidth=width, marker="o", markersize=size)
    line.set_label(f"\u200b{label}" if label.startswith("_") else label)


def _sorted(points: RDCurve) -> tuple[Sequence[float], Sequence[float]]:
    pairs = sorted(zip(points.rates, points.qualities, strict=True))
    return [x for x, _ in pairs], [y for _, y in pairs]


def main(words: Sequence[str]) -> None:
    """Draw the curves of a results.json to a .svg or .png file."""
    results, picture = map(Path, words)
    report = curves_of(parse(results.read_text()))
    write_bytes(picture, draw_curves(report, picture.suffix[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
