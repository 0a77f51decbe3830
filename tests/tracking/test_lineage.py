"""From a version back through its stages to the shards and their source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.tracking import Tracker, lineage, register_model
from tests.tracking.test_command import pipeline

MANIFEST = {
    "split": "train",
    "seed": 7,
    "source_digest": "c0ffee" * 10,
    "shards": [{"name": "train-000000"}],
    "samples": 30,
    "listed": 32,
    "created_with": {"sources": ["/corpus/photographs"]},
}


def train(name: str, parent: str | None = None) -> Tracker:
    tags = {"stage": name, "recipe": "demo", "recipe_digest": "d1" * 32, "overrides": "seed=3"}
    tracker = Tracker.start("demo", name, params={}, tags=tags, parent_run_id=parent)
    tracker.dataset("train", "ab" * 32, "/shards")
    tracker.log_text(json.dumps(MANIFEST), "train.json", "data")
    return tracker


@pytest.mark.slow
def test_the_way_back(workdir: Path, checkpoint: Callable[..., Path]) -> None:
    base = train("base")
    base.finish()
    fine = train("mse", base.run_id)
    folder = checkpoint(run_id=fine.run_id, stage="mse", rate_weight=0.85)
    fine.finish()
    register_model(str(folder), "cca", "champion", {"bpp": 0.5, "psnr": 30.0})

    found = lineage("models:/cca@champion")
    assert [step.name for step in found.steps] == ["mse", "base"]
    assert found.steps[1].data[0].digest == "ab" * 32
    assert found.steps[1].data[0].manifest == MANIFEST
    assert found.gap is None
    assert lineage(f"runs:/{base.run_id}").steps == found.steps[1:]
    assert lineage(str(folder)).steps == found.steps

    code, text = pipeline("lineage", "models:/cca/1")
    assert code == 0
    order = [
        "models:/cca/1 @champion", "0.5 bpp", fine.run_id, "recipe: demo (d1d1d1d1d1d1)",
        "overrides: seed=3", base.run_id, "manifest abababababab", "30 of 32 pictures, seed 7",
        "from: /corpus/photographs, listing c0ffeec0ffee",
    ]  # fmt: skip
    positions = [text.index(part) for part in order[:3]] + [text.rindex(p) for p in order[5:]]
    assert positions == sorted(positions)
    assert all(part in text for part in order)
    code, text = pipeline("lineage", "models:/cca/1", "--json")
    assert json.loads(text)["steps"][0]["run_id"] == fine.run_id


def test_a_gap_is_told(workdir: Path, checkpoint: Callable[..., Path]) -> None:
    imported, elsewhere = checkpoint("imported"), checkpoint("elsewhere", run_id="0" * 32)
    assert "imported" in str(lineage(str(imported)).gap)
    assert "0" * 32 in str(lineage(str(elsewhere)).gap)
    code, text = pipeline("lineage", str(imported))
    assert code == 0
    assert "the trail ends here" in text


def test_an_unknown_model_is_bad_input(workdir: Path) -> None:
    code, text = pipeline("lineage", "models:/nothing@champion")
    assert code == 2
    assert text.startswith("pipeline: there is no models:/nothing@champion")
