"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recipes.config.load import load_recipe
from recipes.config.settings import RecipeError

TEXT = """
name: trial
out: runs/${name}
data: {train: shards-out}
stages:
  - {name: base, rate_weight: 0.3, steps: 100, lr: 1e-4}
  - {name: mse, init: base, rate_weight: [0.3, 0.85], steps: 100}
  - {name: ms-ssim, init: mse, rate_weight: [0.85], steps: 50, distortion: ms-ssim}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(TEXT)
    return path


def test_runs_fan_out_over_rates_and_find_their_parents(path: Path) -> None:
    runs = load_recipe(path).runs()
    assert [run.id for run in runs] == ["base", "mse/w0.3", "mse/w0.85", "ms-ssim/w0.85"]
    assert [run.parent.id if run.parent else None for run in runs] == [
        None,
        "base",
        "base",
        "mse/w0.85",
    ]
    assert runs[1].folder == Path("runs/trial/mse/w0.3")
    assert runs[2].rate_weight == 0.85


def test_overrides_name_stages_by_number_or_name(path: Path) -> None:
    recipe = load_recipe(path, ["stages.0.steps=7", "stages.base.lr=1e-3", "model=tiny"])
    assert (recipe.stages[0].steps, recipe.stages[0].lr, recipe.model) == (7, 1e-3, "tiny")
    assert load_recipe(path, ["stages.1.cca.mode=off"]).runs()[1].cca.mode == "off"
    assert load_recipe(path, ["name=other"]).out == "runs/other"


def test_all_mistakes_are_reported_at_once_with_the_nearest_name(path: Path) -> None:
    wrong = [
        "daat.train=x",
        "data.tran=x",
        "stages.0.stepz=3",
        "stages.1.rate_weight=[-3]",
        "cca.mode=of",
        "stages.9.lr=1",
        "nonsense",
    ]
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, wrong)
    message = str(caught.value)
    for piece in (
        "unknown key daat (did you mean data?)",
        "unknown key data.tran (did you mean train?)",
        "unknown key stages.0.stepz (did you mean steps?)",
        "stages.1.rate_weight.0: input should be greater than 0 (given: -3)",
        "cca.mode: input should be 'adversarial', 'published' or 'off'",
        "stages.9: there are only 0 to 2, or by name base, mse, ms-ssim",
        "'nonsense' is not of the form key=value",
    ):
        assert piece in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "piece"),
    [
        ("stages.1.init=bass", "starts from bass, which is no stage before it"),
        ("stages.2.rate_weight=[3]", "has runs at 0.3, 0.85"),
        ("stages.2.crop=128", "ms-ssim needs a crop of 192"),
        ("stages.0.crop=100", "multiple of 64"),
        ("stages.0.rate_weight=1e9", "less than or equal to 1000"),
        ("stages.0.rate_weight=.nan", "stages.0.rate_weight"),
        ("stages.1.rate_weight=[1,1]", "same weight twice"),
        ("stages.1.name=base", "two stages are called base"),
        ("checkpoint.keep=1", "greater than or equal to 2"),
        ("stages=[]", "at least 1 item"),
        ("data.train=", "data.train"),
        ("out=${nowhere}", "nowhere"),
        ("out=???", "Missing mandatory value: out"),
    ],
)
def test_one_sentence_for_each_mistake(path: Path, override: str, piece: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert piece in str(caught.value)


def test_a_recipe_may_come_through_a_pipe(path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, path.read_bytes())
    os.close(writer)
    assert load_recipe(f"/dev/fd/{reader}").digest == load_recipe(path).digest
    os.close(reader)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [")
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(bad)
    for deep in ("[", "{a: ", "- ", "? "):
        bad.write_text(deep * 60_000)  # in C, a loader that follows it overflows its stack
        with pytest.raises(RecipeError, match="is nested too deeply"):
            load_recipe(bad)
    bad.write_text("- a\n- b\n")
    with pytest.raises(RecipeError, match="a recipe is a mapping"):
        load_recipe(bad)


def test_digest_follows_the_content(path: Path) -> None:
    assert load_recipe(path).digest == load_recipe(path).digest
    assert load_recipe(path).digest != load_recipe(path, ["seed=1"]).digest
    # How fast, how often and where doesn't decide the numbers; the learning rate does.
    first = load_recipe(path).runs()[0].decisive()
    assert load_recipe(path, ["out=x", "speed.compile=true"]).runs()[0].decisive() == first
    assert load_recipe(path, ["stages.0.lr=1e-5"]).runs()[0].decisive() != first


def test_letters_that_a_locale_does_not_know_are_one_sentence(write_recipe) -> None:
    # So Python reads the words of a shell whose locale has no UTF-8.
    word = "out=läufe".encode().decode("ascii", "surrogateescape")
    with pytest.raises(RecipeError, match=r"set LC_ALL=C\.UTF-8, or PYTHONUTF8=1"):
        load_recipe(write_recipe(), [word])


def test_one_setting_of_several_that_a_word_stands_for_can_be_said_otherwise(write_recipe) -> None:
    path = write_recipe(speed="auto", optimizer="adamw")
    recipe = load_recipe(path, ["speed.precision=fp32", "optimizer.betas=[0.9,0.95]"])
    assert (recipe.speed.precision, recipe.speed.cuda_graphs) == ("fp32", "auto")
    assert (recipe.optimizer.name, recipe.optimizer.betas) == ("adamw", (0.9, 0.95))
