"""A stage starts from any MODEL, and says in one sentence why it can't."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.codec import ModelInfo, save_model
from pipeline.tracking.store import client
from recipes.config.load import load_recipe
from recipes.train import main
from recipes.training.module import build

Say = Callable[..., str]


@pytest.fixture
def say(write_recipe, caplog: pytest.LogCaptureFixture) -> Say:
    """Start a training from a MODEL that can't be started from; return what it says, once."""

    def refused(init: str, *changes: str) -> str:
        caplog.clear()
        code = main([str(write_recipe()), f"stages.0.init={init}", "out=other", *changes])
        assert code == 2
        assert not Path("other").exists()
        said = [line.getMessage() for line in caplog.records if line.levelname == "ERROR"]
        assert len(said) == 1
        return said[0]

    return refused


@pytest.fixture
def parent(write_recipe) -> Path:
    """The folder of a model, with its auxiliary one, in the working folder."""
    module = build(load_recipe(write_recipe(), ["seed=7"]).runs()[0])
    save_model(module.model, Path("parent"), ModelInfo(name="parent"), module.auxiliary)
    return Path("parent")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def starts_with(write_recipe, init: str, *changes: str) -> dict[str, torch.Tensor]:
    """Return the weights of the model that a stage starts with."""
    recipe = load_recipe(write_recipe(), [f"stages.0.init={init}", *changes])
    return build(recipe.runs()[0]).model.state_dict()


@pytest.mark.slow
def test_a_run_starts_from_another_recipe_s_run_with_its_lineage_on_record(write_recipe) -> None:
    one_step = [str(write_recipe()), "stages.0.steps=1"]
    assert main([*one_step, "out=first"]) == 0
    first = json.loads(Path("first/base/run.json").read_text())
    assert main([*one_step, f"stages.0.init=runs:/{first['run_id']}", "out=second"]) == 0
    second = json.loads(Path("second/base/run.json").read_text())
    tags = client().get_run(second["run_id"]).data.tags
    assert tags["init"] == f"runs:/{first['run_id']}"
    assert tags["init_run_id"] == tags["mlflow.parentRunId"] == first["run_id"]
    assert tags["init_recipe"] == "trial"
    assert tags["init_fingerprint"] == second["parent_fingerprint"] != ""


def test_a_file_and_its_folder_give_their_weights(write_recipe, parent: Path) -> None:
    wanted = tensors(parent)
    for name in (str(parent), f"./{parent}/", str(parent.absolute() / "model.safetensors")):
        given = starts_with(write_recipe, name)
        assert all(torch.equal(given[key], wanted[f"model.{key}"]) for key in given)


def test_what_is_no_whole_model_is_refused_before_the_first_step(parent: Path, say: Say) -> None:
    file = parent / "model.safetensors"
    Path("empty").mkdir()
    Path("cut.safetensors").write_bytes(file.read_bytes()[:5000])
    Path("words.safetensors").write_text("no model")
    Path("link").symlink_to("nowhere")
    save_file({"weight": torch.zeros(1)}, "foreign.safetensors")
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    weights = load_file(file)
    save_file(weights, "later.safetensors", about | {"version": "99"})
    next(weights[name] for name in weights if name.startswith("model."))[0] += 1
    save_file(weights, "changed.safetensors", about)
    for name, piece in {
        "empty": "there is no model in empty",
        "cut.safetensors": "is not a model of ours",
        "words.safetensors": "is not a model of ours",
        "link": "no stage before it",
        "foreign.safetensors": "holds no model of this project",
        "later.safetensors": "format version 99",
        "changed.safetensors": "is damaged",
        "s3://lab/model": "there is no model s3://lab/model",
        "models:/parents": "is not the name of a model",
        "runs:/../..": "is not the name of a model",
        "box": "has another architecture",
        '""': "must name a place",
        "~no-such-user/model": "the home of a user who is not known here",
    }.items():
        assert piece in say(name), name


def test_a_model_of_another_size_gives_what_fits_when_that_is_asked_for(
    write_recipe, parent: Path, say: Say
) -> None:
    wider = ["model.latent_channels=24"]
    assert "has another architecture" in say(str(parent), *wider)
    partial = [*wider, "stages.0.init_partial=true"]
    wanted = tensors(parent)
    given = starts_with(write_recipe, str(parent), *partial)
    fitting = [key for key in given if given[key].shape == wanted[f"model.{key}"].shape]
    assert 0 < len(fitting) < len(given)
    assert all(torch.equal(given[key], wanted[f"model.{key}"]) for key in fitting)
    assert "none of whose weights fits" in say("box", "stages.0.init_partial=true")


@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_model_with_numbers_that_are_not_finite_is_refused(
    write_recipe, say: Say, auxiliary: bool
) -> None:
    module = build(load_recipe(write_recipe(), []).runs()[0])
    changed = module.auxiliary if auxiliary else module.model
    assert changed is not None
    next(changed.parameters()).data.view(-1)[0] = float("nan")
    save_model(module.model, Path("broken"), ModelInfo(), module.auxiliary)
    assert "has values that are not finite" in say("broken")
