"""Plans that earlier versions wrote are read; one of a later version is one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration import store
from orchestration.errors import OrchestrationError

KEPT = sorted((Path(__file__).parent / "kept").glob("*.json"))


@pytest.mark.parametrize("kept", KEPT, ids=[path.name for path in KEPT])
def test_a_plan_of_an_earlier_version_is_read(kept: Path, tmp_path: Path) -> None:
    (tmp_path / store.FILE).write_text(kept.read_text())
    plan = store.read(tmp_path)
    assert plan.job("train-base").resumable
    assert plan.job("train-base").shell()


@pytest.mark.parametrize(
    ("changes", "piece"),
    [
        ({"format": 2, "graph": []}, "is of format 2, newer than this version's 1"),
        ({"jobs": 3}, "is no plan that this version reads: 1 fields are wrong"),
        ({"format": "one"}, "is no plan that this version reads"),
    ],
)
def test_another_plan_is_one_sentence(
    tmp_path: Path, changes: dict[str, object], piece: str
) -> None:
    plan = json.loads(KEPT[0].read_text()) | changes
    (tmp_path / store.FILE).write_text(json.dumps(plan))
    with pytest.raises(OrchestrationError, match=piece):
        store.read(tmp_path)
