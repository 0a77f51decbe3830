"""The settings of a recipe in the terminal."""

from __future__ import annotations

import pytest

from pipeline.cli.recipes import recipes
from recipes.config.explain import explain, settings
from recipes.config.settings import RecipeError


def test_every_setting_has_a_meaning() -> None:
    every = list(settings())
    keys = [one.key for one in every]
    assert {"stages.lr", "data.cache.gigabytes", "checkpoint.spike", "stages.plateau"} <= set(keys)
    assert all(one.kind and one.default for one in every)


def test_a_setting_is_found_by_its_key_or_its_name() -> None:
    (lr,) = explain("stages.0.lr")
    assert explain("stages.base.lr") == explain("stages.lr") == [lr]
    assert (lr.kind, lr.default) == ("number", "default 0.0001")
    assert lr.meaning.startswith("The optimizer")
    assert [one.key for one in explain("gigabytes")] == [
        "data.cache.gigabytes",
        "stages.data.cache.gigabytes",
    ]
    assert {one.key for one in explain("checkpoint")} > {"checkpoint.keep", "checkpoint.spike"}
    with pytest.raises(RecipeError, match="did you mean"):
        explain("evalute_every")


def test_the_command_explains(capsys: pytest.CaptureFixture[str]) -> None:
    recipes(key="distortion")
    assert "stages.distortion: mse or ms-ssim or mixed; default mse" in capsys.readouterr().out
