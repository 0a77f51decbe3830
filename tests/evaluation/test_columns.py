"""The table of costs: a line in `COSTS` is a column of models and classical codecs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.evaluation import webpage
from pipeline.evaluation.columns import COSTS, Column
from pipeline.evaluation.results import Report


def test_a_line_is_a_column(
    make_report: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = Column("megabytes", lambda model: f"{4 * model.parameters / 1e6:.2f} MB")
    monkeypatch.setattr(webpage, "COSTS", (*COSTS, more))
    report = make_report({"a": [(0.2, 28), (0.4, 31)]}, {"jpeg": [(0.3, 27), (0.5, 30)]})
    page = webpage.render(report, [])
    assert page.count('<th scope="col">megabytes</th>') == 1
    assert page.count("<td>4.36 MB</td>") == 2
    told = [column.of_peer(report.peers[0]) for column in COSTS]
    assert told == ["–", "–", "10 ms", "20 ms", "–"]
