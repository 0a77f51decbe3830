"""A stage that ends when its held-out cost no longer falls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.config.settings import Plateau
from recipes.train import main
from recipes.training.checkpoint import found
from recipes.training.trainer_state import TrainerState
from tests.recipes.test_faults import small_pictures

PLATEAU = Plateau(patience=3, improvement=0.01)


def judged(*costs: float) -> TrainerState:
    memory = TrainerState()
    for cost in costs:
        assert not memory.ended
        memory.judge(cost, PLATEAU)
    return memory


def test_it_ends_after_as_many_evaluations_without_an_improvement() -> None:
    assert judged(5, 4, 4, 4, 4).ended
    assert not judged(5, 4, 4, 4).ended
    assert not judged(5, 4, 4, 4, 3.9, 3.9, 3.9).ended


def test_small_improvements_add_up() -> None:
    # By 0.4 % each time: every third one makes a whole percent.
    assert not judged(*(100 * 0.996**i for i in range(30))).ended
    assert judged(*(100 * 0.9999**i for i in range(4))).ended


def test_the_lowest_cost_is_the_lowest_whether_it_counts_or_not() -> None:
    memory = TrainerState()
    lowest = [memory.judge(cost, PLATEAU) for cost in (5, 6, 4.99, 4.98, 5)]
    assert lowest == [True, False, True, True, False]
    assert memory.best == 4.98


@pytest.mark.slow
def test_a_stage_ends_early_and_a_second_run_leaves_it_so(write_recipe, pictures: Path) -> None:
    stage = {"name": "base", "rate_weight": 0.3, "steps": 50, "batch": 4, "crop": 64}
    stage |= {"lr": 1e-12, "quantile_lr": 1e-12, "plateau": {"patience": 2}}
    path = write_recipe(stages=[stage], evaluate_every=1)
    held_out = [f"data.validation={small_pictures(pictures, path.parent / 'v', 1)}"]
    for _ in range(2):
        assert main([str(path), *held_out]) == 0
        about = json.loads((path.parent / "runs" / "base" / "run.json").read_text())
        assert about["done"]
        # The first evaluation is an improvement; two more are not.
        assert found(path.parent / "runs" / "base")[-1].step == 3
