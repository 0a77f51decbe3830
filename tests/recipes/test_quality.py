"""The benchmark of time to quality, with a toy budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.config.stage import Stage
from recipes.train import main as train
from recipes.training.validate import rate_points
from tests.benchmarks import quality, quality_report

CONTENDERS = {
    "faster": {"set": ["stages.base.lr=2e-3", "optimizer.betas=[0.9, 0.99]"]},
    "half": {"share": 0.5, "set": ["ema=0.9"]},
}
ROOT = Path(quality.__file__).parent


def held_out_costs(folder: Path) -> list[float]:
    judged = [one for one in quality.lines(folder / quality.LOG) if "held_out" in one]
    return [one["held_out"]["cost"] for one in judged]


@pytest.mark.nightly
@pytest.mark.slow
def test_contenders_are_trained_by_training_itself_and_compared(
    write_recipe, held_out: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"name": "base", "variable_rate": [1, 3, 8, 20], "steps": 4, "batch": 2, "crop": 64}
    path = write_recipe(stages=[{**stage, "lr": 1e-3}], cca={"mode": "off"}, evaluate_every=2)
    (tmp_path / "ways.yaml").write_text(yaml.safe_dump(CONTENDERS))
    words = [str(path), f"data.validation={held_out}", "--contenders", str(tmp_path / "ways.yaml")]
    # Its own store, and back to the tests' one.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert quality.main([*words, "--seeds", "1", "--out", "q"]) == 0
    table = capsys.readouterr().out
    assert "| baseline | 1 | 1x | 1x | 1x |" in table
    told = quality_report.read(Path("q"))["compared"]
    assert set(told) == {"baseline", *CONTENDERS}
    assert Path("q", "results.svg").is_file()
    runs = {name: Path("q", name, "seed-0", "base") for name in told}
    assert len(held_out_costs(runs["faster"])) == 2
    last = quality.lines(runs["half"] / quality.LOG)[-1]
    assert (last["step"], last["samples"]) == (2, 4)
    # What is there is not trained again.
    before = {name: (run / quality.LOG).read_bytes() for name, run in runs.items()}
    assert quality.main([*words, "--seeds", "1", "--out", "q"]) == 0
    assert before == {name: (run / quality.LOG).read_bytes() for name, run in runs.items()}
    # Nor is it left out of the results where others alone are trained.
    assert quality.main([*words, "--seeds", "1", "--out", "q", "--only", "faster"]) == 0
    assert set(quality_report.read(Path("q"))["compared"]) == {"baseline", *CONTENDERS}
    # The weights are those of training: the same cost to the last bit.
    plain = [str(path), f"data.validation={held_out}", "seed=0", "out=plain"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/q/mlflow.db")
    assert train([*plain, "checkpoint.every_steps=2"]) == 0
    (about,) = sorted(Path("plain").glob("base/checkpoints/step-*4/checkpoint.json"))
    assert json.loads(about.read_text())["cost"] == held_out_costs(runs["baseline"])[-1]


def test_a_contender_builds_on_another(tmp_path: Path) -> None:
    path = tmp_path / "ways.yaml"
    path.write_text("a: {share: 0.5, set: [x=1]}\nb: {like: a, set: [y=2]}\nc: {like: b, share: 1}")
    told = quality.contenders(path, [])
    assert told["b"] == {"like": "a", "share": 0.5, "set": ["x=1", "y=2"]}
    assert (told["c"]["share"], told["c"]["set"]) == (1, ["x=1", "y=2"])
    path.write_text("b: {like: a}\na: {}")
    with pytest.raises(SystemExit, match="no contender is called a"):
        quality.contenders(path, [])


def test_the_contenders_that_come_with_the_project_are_recipes() -> None:
    baseline = quality.prepared(str(ROOT / "quality.yaml"), [], {})
    points = rate_points(quality.judge_of(baseline))
    for name, way in quality.contenders(ROOT / "contenders.yaml", []).items():
        recipe = quality.prepared(str(ROOT / "quality.yaml"), [], way)
        assert rate_points(recipe.runs()[-1]) == points, name
        expected = round(320 * way.get("share", 1))
        assert sum(stage.steps for stage in recipe.stages) == expected, name


def evaluations(*costs: float) -> list[dict[str, Any]]:
    return [
        {"samples": 10 * n, "cpu": 2.0 * n, "held_out": {"cost": cost}}
        for n, cost in enumerate(costs, 1)
    ]


def test_time_to_quality_is_where_the_curve_meets_the_baselines_end() -> None:
    rows = [
        {"contender": name, "seed": seed, "evaluations": evaluations(*costs)}
        for name, seed, costs in (
            ("baseline", 0, (8, 6, 5, 4)),
            ("good", 0, (6, 2, 1, 1)),
            ("bad", 0, (9, 9, 9, 9)),
            ("baseline", 1, (8, 6, 5, 4)),
            ("good", 1, (4, 2, 1, 1)),
            ("bad", 1, (9, 8, 7, 4)),
        )
    ]
    found = quality_report.compared(rows)
    assert found["baseline"]["to_samples"] == [1, 1]
    assert found["good"]["to_samples"] == [15 / 40, 10 / 40]
    assert found["good"]["to_cpu"] == [3 / 8, 2 / 8]
    assert found["bad"]["to_cpu"] == [None, 1]
    table = quality_report.table(found)
    assert "| good | 2 | 0.312x (0.25 to 0.375) |" in table
    assert "| bad | 2 | 1x, not reached by 1 |" in table


def test_contenders_are_compared_with_another_than_the_recipe() -> None:
    rows = [
        {"contender": name, "seed": seed, "evaluations": evaluations(*costs)}
        for name, seed, costs in (
            ("baseline", 0, (8, 6, 5, 4)),
            ("good", 0, (6, 3, 2, 1)),
            ("better", 0, (2, 1)),
            ("better", 1, (2, 1)),
        )
    ]
    found = quality_report.compared(rows, "good")
    # At seed 1 there is nothing to compare with.
    assert found["better"]["to_samples"] == [2 / 4]
    assert found["baseline"]["to_samples"] == [None]
    assert "samples to good's cost" in quality_report.table(found, "good")


def test_final_models_for_several_rates_are_compared_by_bd_rate() -> None:
    curve = [(0.2, 28.0), (0.4, 31.0), (0.8, 34.0), (1.6, 37.0)]
    rows = []
    for name, factor in (("baseline", 1.0), ("good", 0.9)):
        means = {"cost": 1.0}
        for rate, (bpp, psnr) in enumerate(curve):
            means |= {f"rate_{rate}/bpp": factor * bpp, f"rate_{rate}/psnr": psnr}
        ended = {"samples": 1, "cpu": 1.0, "held_out": means}
        rows.append({"contender": name, "seed": 0, "evaluations": [ended]})
    found = quality_report.compared(rows)
    assert found["baseline"]["bd_rate"] == [0]
    assert found["good"]["bd_rate"] == [pytest.approx(-10, abs=0.01)]


def test_a_share_of_the_steps_keeps_what_happens_at_steps_in_place() -> None:
    phase = {"step": 60, "crop": 128, "batch": 2}
    stage = Stage.model_validate(
        {"name": "a", "rate_weight": 1, "steps": 100, "batch": 4, "crop": 64}
        | {"phases": [phase], "milestones": {80: 0.1}, "restarts": [40]}
    )
    half = quality.shortened(stage, 0.5)
    assert (half.steps, half.phases[0].step, half.restarts) == (50, 30, [20])
    assert half.milestones == {40: 0.1}
    assert quality.shortened(stage, 1.0) == stage
