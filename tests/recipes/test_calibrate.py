"""Stages that end with a calibrated model: `calibrate` in a recipe."""

from __future__ import annotations

import pytest
import torch

from pipeline.codec import ModelInfo, load_model
from recipes.config.load import load_recipe
from recipes.config.settings import RecipeError
from recipes.training.data import first_crops
from recipes.training.module import build
from recipes.training.results import export


def test_the_first_crops_of_a_run_give_its_model_scales(write_recipe, tmp_path) -> None:
    (run,) = load_recipe(write_recipe()).runs()
    crops = first_crops(run, 5)
    assert [tuple(crop.shape) for crop in crops] == [(1, 3, 64, 64)] * 5
    assert all(torch.equal(a, b) for a, b in zip(crops, first_crops(run, 7), strict=False))
    model = build(run).model
    state = {f"weights.model.{name}": tensor for name, tensor in model.state_dict().items()}
    export(model.config, state, tmp_path / "with", ModelInfo(), crops)
    export(model.config, state, tmp_path / "without", ModelInfo())
    assert load_model(tmp_path / "with").scales
    assert not load_model(tmp_path / "without").scales


def test_a_model_that_can_have_no_scales_is_kept(write_recipe, tmp_path, caplog) -> None:
    (run,) = load_recipe(write_recipe()).runs()
    model = build(run).model
    state = {f"weights.model.{name}": tensor for name, tensor in model.state_dict().items()}
    nothing = [torch.full((1, 3, 64, 64), torch.nan)]
    export(model.config, state, tmp_path, ModelInfo(), nothing)
    assert "kept without scales" in caplog.text
    assert not load_model(tmp_path).scales


@pytest.mark.parametrize("count", [-1, 1.5, True, "all"])
def test_what_is_no_number_of_crops_is_refused(write_recipe, count: object) -> None:
    stage = {"name": "base", "rate_weight": 0.3, "steps": 6, "batch": 4, "crop": 64}
    with pytest.raises(RecipeError, match=r"stages\.0\.calibrate"):
        load_recipe(write_recipe(stages=[{**stage, "calibrate": count}]))


def test_calibrating_does_not_make_a_run_another_one(write_recipe) -> None:
    (plain,) = load_recipe(write_recipe()).runs()
    (other,) = load_recipe(write_recipe(), ["stages.0.calibrate=16"]).runs()
    assert plain.decisive() == other.decisive()
