"""The average of the weights: what it is, that it is evaluated, kept, and resumed to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from recipes.config.load import load_recipe
from recipes.config.settings import RecipeError
from recipes.train import main
from recipes.training import preflight as check
from recipes.training.checkpoint import found
from recipes.training.ema import Average, decay_of, moving
from tests.recipes.test_training import assert_same


def test_the_average_follows_the_weights_and_gives_them_back() -> None:
    module = nn.Linear(1, 1)
    module.bias.requires_grad_(False)
    with torch.no_grad():
        module.weight.fill_(0.0)
    average = Average(module, moving(0.9))
    expected, decays = 0.0, []
    for step in range(1, 121):
        with torch.no_grad():
            module.weight.fill_(float(step))
        average.update(step)
        decays.append(min(0.9, step / (step + 9)))
        expected += (1 - decays[-1]) * (step - expected)
    assert (decays[0], decays[-1]) == (0.1, 0.9)
    with average.in_place():
        assert module.weight.item() == pytest.approx(expected, rel=1e-5)
    assert module.weight.item() == 120
    assert average.gather().keys() == {"ema.weight"}


def test_the_mean_of_the_last_steps_is_that_of_the_weights_they_left(write_recipe) -> None:
    recipe = write_recipe(ema=0.99)
    run = load_recipe(recipe, ["stages.0.steps=20", "stages.0.swa=0.25"]).runs()[0]
    module = nn.Linear(1, 1)
    average = Average(module, decay_of(run))
    for step in range(1, 21):
        with torch.no_grad():
            module.weight.fill_(float(step**2))
        average.update(step)
        if step == 18:
            # Nothing else is needed to go on.
            kept, average = average.gather(), Average(module, decay_of(run))
            average.restore(kept)
        last = range(min(step, 16), step + 1)
        with average.in_place():
            expected = sum(one**2 for one in last) / len(last)
            assert module.weight.item() == pytest.approx(expected, rel=1e-6)
    # It depends on the number of steps, which a constant rate alone does not.
    assert run.decisive()["steps"] == 20
    assert (run.ema, run.averages) == (None, True)


@pytest.mark.slow
def test_a_run_with_an_average_resumes_to_the_bit_and_exports_it(
    write_recipe, held_out: Path
) -> None:
    path = write_recipe(ema=0.99)
    validation = {"validation": str(held_out), "validation_pictures": 1}
    evaluated = [f"data.{key}={value}" for key, value in validation.items()]
    whole, cut = path.parent / "whole", path.parent / "cut"
    assert main([str(path), f"out={whole}"]) == 0
    # Evaluating has the average in the weights' place, and must give them back.
    assert main([str(path), f"out={cut}", "stages.0.steps=3", "evaluate_every=9", *evaluated]) == 0
    (cut / "base" / "run.json").unlink()
    assert main([str(path), f"out={cut}"]) == 0
    assert_same(whole / "base", cut / "base")
    model = load_file(whole / "base" / "model.safetensors")
    state = found(whole / "base")[-1].tensors()
    name = "model.synthesis.last.weight"
    assert torch.equal(model[name], state[f"ema.{name}"])
    assert not torch.equal(model[name], state[f"weights.{name}"])


@pytest.mark.slow
def test_an_average_is_a_setting_that_a_run_keeps(write_recipe, caplog) -> None:
    path = write_recipe(ema=0.99)
    assert main([str(path), "stages.0.steps=2"]) == 0
    folder = path.parent / "runs" / "base"
    (folder / "run.json").write_text(json.dumps({"done": False}))
    assert main([str(path), "ema=0.9"]) == 2
    assert "ema was 0.99 and is 0.9" in caplog.text
    assert main([str(path), "ema=1"]) == 2
    assert "ema: input should be less than 1" in caplog.text


def test_zero_3_has_no_whole_weights_to_average(write_recipe) -> None:
    runs = load_recipe(write_recipe(ema=0.99)).runs()
    plugin = SimpleNamespace(zero_stage=3)
    accelerator = SimpleNamespace(num_processes=2, state=SimpleNamespace(deepspeed_plugin=plugin))
    with pytest.raises(RecipeError, match="ZeRO-3 has parts: use ZeRO-2"):
        check.for_processes(runs, accelerator)
