"""A report takes any name: nothing of it is obeyed by a browser, a plot, or a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.common.printable import LAYOUT
from pipeline.evaluation.plots import draw_curves
from pipeline.evaluation.results import Point, Report
from pipeline.evaluation.run import table
from pipeline.evaluation.webpage import render
from tests.proof.test_names import HOSTILE, Tags, obeyed


def named(report: Report, names: Sequence[str]) -> Report:
    """The report with its models, their curves and pictures called by `names`."""
    pictures = report.models[0].point.pictures
    models = [
        replace(
            one,
            name=name,
            curve=name,
            path=name,
            point=Point("", tuple(replace(picture, name=name) for picture in pictures)),
        )
        for one, name in zip(report.models, names, strict=True)
    ]
    return replace(report, models=tuple(models))


def test_a_report_takes_any_name(make_report: Callable[..., Report]) -> None:
    curve = [(0.2 + 0.01 * i, 30.0 + i / 2) for i in range(len(HOSTILE))]
    plain = make_report({"curve": curve}, {"jpeg": [(0.3, 29), (0.6, 32)]})
    report = named(plain, HOSTILE)
    page = render(report, [])
    assert Tags(page).found == Tags(render(plain, [])).found
    assert not obeyed(page, LAYOUT)
    page.encode()
    assert b"<script" not in draw_curves(report, "svg")
    rows = list(csv.reader(io.StringIO(table(report))))
    assert len(rows) == 1 + len(report.rows())
    assert not any(one.startswith(("=", "+", "@")) or obeyed(one) for row in rows for one in row)
