"""What `tests.benchmarks.quality` makes of its runs: ratios with their spread, a table, a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import torch

from pipeline.common.atomic import write_json, write_text
from pipeline.evaluation.bdrate import BDRateError, RDCurve, bd_rate

matplotlib.use("Agg")

AXES = {"samples": "samples", "cpu": "CPU seconds"}
if torch.cuda.is_available():
    AXES["seconds"] = "seconds"
# The lower half of the plot shows costs up to so many times the lowest.
NEAR = 1.4
# A contender's evaluations, one a step; and what is known of it at each seed.
Evaluations = Sequence[dict[str, Any]]


def write(
    out: Path, recipe: str, rows: Sequence[dict[str, Any]], against: str = "baseline"
) -> None:
    """Write results.json, results.md and results.svg of the runs so far to `out`.

    `rows` have a contender's name, a seed, and its evaluations.
    """
    numbers = compared(rows, against)
    write_json(out / "results.json", {"recipe": recipe, "runs": list(rows), "compared": numbers})
    write_text(out / "results.md", table(numbers, against))
    plot(out / "results.svg", rows)


def compared(
    rows: Sequence[dict[str, Any]], against: str = "baseline"
) -> dict[str, dict[str, list[float | None]]]:
    """Return, for each contender, a number a seed against the baseline of that seed.

    The baseline is the contender `against`; seeds that it has not been trained at are left out.

    `cost` is the final held-out cost; `to_samples`, `to_cpu` and, on a GPU, `to_seconds` are what
    it took to the baseline's final cost, as shares of what that took (None: it did not get there);
    `cpu` is what all of it took, as such a share; `bd_rate` compares the final models, in percent
    (None: no curve).
    """
    anchors = {row["seed"]: row["evaluations"] for row in rows if row["contender"] == against}
    found: dict[str, dict[str, list[float | None]]] = {}
    for row in (row for row in rows if row["seed"] in anchors):
        anchor, own = anchors[row["seed"]], row["evaluations"]
        last, goal = anchor[-1], anchor[-1]["held_out"]["cost"]
        numbers: dict[str, float | None] = {
            "cost": own[-1]["held_out"]["cost"],
            **{f"to_{axis}": _share(reached(own, axis, goal), last[axis]) for axis in AXES},
            "cpu": own[-1]["cpu"] / last["cpu"],
            "bd_rate": _bd_rate(last["held_out"], own[-1]["held_out"]),
        }
        kept = found.setdefault(row["contender"], {name: [] for name in numbers})
        for name, value in numbers.items():
            kept[name].append(value)
    return found


def reached(evaluations: Evaluations, axis: str, goal: float) -> float | None:
    """Return where on `axis` the held-out cost first falls to `goal`, on lines between points."""
    before: tuple[float, float] | None = None
    for one in evaluations:
        at, cost = float(one[axis]), float(one["held_out"]["cost"])
        if cost <= goal:
            if before is None or before[1] == cost:
                return at
            return before[0] + (at - before[0]) * (before[1] - goal) / (before[1] - cost)
        before = at, cost
    return None


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None else part / whole


def _bd_rate(anchor: dict[str, float], test: dict[str, float]) -> float | None:
    curves = []
    for means in (anchor, test):
        names = sorted(name[:-4] for name in means if name.startswith("rate_") and "/bpp" in name)
        if not names:
            return None
        rates = [means[f"{name}/bpp"] for name in names]
        curves.append(RDCurve(rates, [means[f"{name}/psnr"] for name in names]))
    try:
        return round(bd_rate(*curves), 2)
    except BDRateError:
        return None


def table(numbers: dict[str, dict[str, list[float | None]]], against: str = "baseline") -> str:
    """Return the comparison as a table in Markdown: medians, with the range over the seeds."""
    whose = "the baseline's" if against == "baseline" else f"{against}'s"
    samples, *others = AXES.values()
    heads = [
        "contender",
        "seeds",
        f"{samples} to {whose} cost",
        *(f"{one} to it" for one in others),
    ]
    heads += ["all CPU seconds", "final cost", "BD-rate"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, own in numbers.items():
        cells = [_spread(own[key], "x") for key in (*(f"to_{axis}" for axis in AXES), "cpu")]
        cells += [_spread(own["cost"]), _spread(own["bd_rate"], " %")]
        lines.append(f"| {name} | {len(own['cost'])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float | None], unit: str = "") -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "–" if unit == " %" else "not reached"
    text = f"{median(there):.3g}{unit}"
    if len(there) > 1:
        text += f" ({min(there):.3g} to {max(there):.3g})"
    missing = len(values) - len(there)
    lacking = "no curve at" if unit == " %" else "not reached by"
    return f"{text}, {lacking} {missing}" if missing else text


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw the held-out cost of every run against samples and CPU seconds.

    Above all costs, on a logarithmic scale; below those up to `NEAR` times the lowest.
    """
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, len(AXES), figsize=(11, 8.5), sharex="col", sharey="row")
    names = list(dict.fromkeys(row["contender"] for row in rows))
    colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"]
    costs = [one["held_out"]["cost"] for row in rows for one in row["evaluations"]]
    for places, settings in zip(grid, _scales(min(costs)), strict=True):
        for place, axis in zip(places, AXES, strict=True):
            for row in rows:
                x = [one[axis] for one in row["evaluations"]]
                y = [one["held_out"]["cost"] for one in row["evaluations"]]
                colour = colours(names.index(row["contender"]) % colours.N)
                shown = row["contender"] if row["seed"] == 0 else None
                place.plot(x, y, color=colour, label=shown, linewidth=1.2, alpha=0.8)
            place.set(**settings)
            place.grid(alpha=0.3)
        places[0].set_ylabel("held-out cost")
    for place, label in zip(grid[-1], AXES.values(), strict=True):
        place.set_xlabel(label)
    grid[0][0].legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _scales(lowest: float) -> list[dict[str, Any]]:
    """Return the settings of both rows of axes: everything, and what is near the lowest cost."""
    return [{"yscale": "log"}, {"ylim": (0.98 * lowest, NEAR * lowest)}]


def read(out: Path) -> dict[str, Any]:
    """Return what `write` has left in `out`."""
    told: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return told
