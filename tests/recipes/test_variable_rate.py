"""One model for several rates: what a recipe says, how samples are drawn, what training leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.codec import load_model, save_model
from pipeline.codec.bitstream import read_header
from pipeline.common.addresses import text_seed
from pipeline.evaluation.learned import to_tensor
from pipeline.evaluation.pictures import read_picture
from recipes.config.load import load_recipe
from recipes.config.settings import RecipeError
from recipes.train import main
from recipes.training.losses import Weights, weights_at
from recipes.training.module import METRICS, build
from recipes.training.noise import draw_noise, draw_rates
from tests.recipes.test_training import assert_same

CPU = torch.device("cpu")
STAGE = {"name": "all", "variable_rate": [0.3, 15, 2], "steps": 6, "batch": 4, "crop": 64}


def stage(**changes: object) -> dict[str, object]:
    return {**STAGE, "lr": 1e-3, **changes}


def test_several_weights_make_one_run(write_recipe) -> None:
    (run,) = load_recipe(write_recipe(stages=[stage()])).runs()
    assert (run.id, run.rate_weight, run.variable_rate) == ("all", None, (15, 2, 0.3))
    assert build(run).model.config.rate_weights == (15, 2, 0.3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variable_rate": None}, "stages.0.rate_weight: is missing"),
        ({"rate_weight": 1.0}, "stages.0.rate_weight: must be left out"),
        ({"variable_rate": [1.0]}, "stages.0.variable_rate"),
        ({"variable_rate": [2, 2]}, "stages.0.variable_rate: names the same weight twice"),
        ({"variable_rate": [2, -1]}, "stages.0.variable_rate.1: input should be greater than 0"),
    ],
)
def test_a_recipe_names_one_weight_or_several(write_recipe, changes, words: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(write_recipe(stages=[stage(**changes)]))
    assert words in str(refused.value)
    assert ";" not in str(refused.value)


def test_what_a_model_for_several_rates_can_start_from(write_recipe, caplog) -> None:
    base = {"name": "base", "rate_weight": 2.0, "steps": 1, "batch": 4, "crop": 64}
    child = stage(init="base", steps=1)
    path = write_recipe(stages=[base, child])
    first, second = load_recipe(path).runs()
    trained = build(first).model
    save_model(trained, first.folder)
    parent, module = trained.state_dict(), build(second)
    for name, tensor in module.model.state_dict().items():
        if not name.startswith("gains."):
            assert torch.equal(tensor, parent[name])
    # Where the parent was trained, its latents are coded as it coded them.
    gains = module.model.gains.y.exp()
    torch.testing.assert_close(gains[1], torch.ones_like(gains[1]))
    assert gains[0].max() < 1 < gains[2].min()

    single = {**base, "name": "single", "init": "all"}
    assert main([str(write_recipe(stages=[stage(), single])), "--stage", "single"]) == 2
    assert "another architecture" in caplog.text
    fanned = {**base, "rate_weight": [1.0, 2.0]}
    with pytest.raises(RecipeError, match="start from a stage with one run"):
        load_recipe(write_recipe(stages=[fanned, child]))
    with pytest.raises(RecipeError, match="name them as its variable_rate"):
        build(load_recipe(write_recipe(model={"rate_weights": [2, 1]})).runs()[0])


def test_the_rate_of_a_sample_depends_on_its_address_alone(write_recipe) -> None:
    config = build(load_recipe(write_recipe(stages=[stage()])).runs()[0]).model.config
    seeds = [text_seed(0, "noise", "all", step, n) for step in range(100) for n in range(8)]
    drawn = draw_rates(config, seeds, CPU)
    assert torch.equal(drawn[3:5], draw_rates(config, seeds[3:5], CPU))
    counts = torch.bincount(drawn.long(), minlength=3)
    assert len(counts) == 3
    assert counts.min() > 200


@pytest.mark.parametrize("mode", ["adversarial", "published", "off"])
def test_a_batch_weighs_each_sample_by_its_own_rate(write_recipe, mode: str) -> None:
    path = write_recipe(stages=[stage()], cca={"mode": mode, "proportional": True})
    run = load_recipe(path).runs()[0]
    module = build(run).train()
    config = module.model.config
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def one_pass(chosen: slice, rates: list[float]) -> tuple[float, dict[str, float]]:
        numbers = torch.tensor(rates)[chosen]
        noise = draw_noise(config, 64, [1, 2][chosen], CPU)
        module.zero_grad()
        loss, metrics = module(x[chosen], noise, weights_at(0, run, numbers), numbers)
        loss.backward()
        return float(loss.detach()), dict(zip(METRICS, metrics.tolist(), strict=True))

    rates = [0.0, 2.0]
    apart = [one_pass(slice(n, n + 1), rates)[0] for n in (0, 1)]
    together, found = one_pass(slice(None), rates)
    assert together == pytest.approx(sum(apart) / 2, rel=1e-5)
    assert found["loss"] > 0
    for logs in (module.model.gains.y, module.model.gains.y_inverse):
        assert (logs.grad.abs().sum(1) > 0).tolist() == [True, False, True]
    assert torch.as_tensor(weights_at(0, run, torch.tensor(rates)).rate).tolist() == pytest.approx(
        [15, 0.3]
    )
    assert Weights.at(0, 15.0, run.cca).main == pytest.approx(
        float(torch.as_tensor(weights_at(0, run, torch.tensor(rates)).main)[0])
    )


def test_the_reversed_gradient_is_weighed_by_sample(write_recipe) -> None:
    from recipes.training.losses import reverse_gradient

    x = torch.ones(2, 3, 4, 5, requires_grad=True)
    reverse_gradient(x, torch.tensor([0.5, 3.0])).sum().backward()
    assert x.grad[0].unique().tolist() == [-0.5]
    assert x.grad[1].unique().tolist() == [-3.0]


@pytest.mark.slow
def test_trained_resumed_and_used_at_any_rate(
    write_recipe, pictures: Path, held_out: Path, store: str
) -> None:
    validation = {"validation": str(held_out), "validation_pictures": 1}
    path = write_recipe(stages=[stage()], start="pyramid")
    whole, cut = path.parent / "whole", path.parent / "cut"
    extra = [f"data.{key}={value}" for key, value in validation.items()]
    scales = "stages.0.calibrate=3"
    assert main([str(path), f"out={whole}", scales, *extra]) == 0
    assert main([str(path), f"out={cut}", "stages.0.steps=3"]) == 0
    (cut / "all" / "run.json").unlink()
    assert main([str(path), f"out={cut}", scales]) == 0
    assert_same(whole / "all", cut / "all")

    model = load_model(whole / "all")
    assert model.scales == load_model(cut / "all").scales != {}
    assert model.info.rate_weight is None
    assert model.info.variable_rate == (15, 2, 0.3)
    x = to_tensor(read_picture(sorted((pictures / "kodak").iterdir())[0]), CPU)[..., :256, :256]
    rates = (0, 0.5, 1, 1.3, 2)
    streams = [model.compress(x, rate=rate) for rate in rates]
    sizes = [len(stream) for stream in streams]
    assert sizes == sorted(set(sizes))
    errors = [float((model.decompress(s) - x).square().mean()) for s in streams]
    assert errors == sorted(errors, reverse=True)
    assert [read_header(s).rate for s in streams] == pytest.approx(rates)

    from mlflow import MlflowClient

    found = MlflowClient(store).get_run(model.info.run_id).data.metrics
    bpp = [found[f"val/rate_{k}/bpp"] for k in range(3)]
    assert bpp == sorted(bpp)
    assert found["val/bpp"] == pytest.approx(sum(bpp) / 3)
