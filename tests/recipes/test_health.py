"""The CCA term stays healthy or says so; a step that can't be taken is not taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pipeline.common.progress import silent
from recipes.config.load import load_recipe
from recipes.config.schema import Run
from recipes.launching import processes as launch
from recipes.launching.signals import StopRequest
from recipes.training.health import WINDOW, CollapseError, Watch
from recipes.training.loop import Trainer
from recipes.training.module import METRICS
from recipes.training.session import Session, TrainingError


def run_of(path: Path, *overrides: str) -> Run:
    return load_recipe(path, overrides).runs()[0]


def trainer(run: Run) -> Trainer:
    accelerator = launch.start(run.recipe)
    return Trainer(run, Session(accelerator, StopRequest(), silent))


def clamp_shares(run: Run, steps: int) -> list[float]:
    """Train `steps` steps without a folder; return the share at the clamp after each."""
    training = trainer(run)
    batches, shares = training.feed.from_step(0), []
    for step in range(steps):
        training.state.step = step
        shares.append(training.try_step(next(batches))["clamp_share"])
    training.feed.close()
    return shares


@pytest.mark.slow
def test_published_collapses_within_70_steps_and_adversarial_does_not(write_recipe) -> None:
    settings = ["stages.0.steps=70", "start=pyramid", "stages.0.batch=4"]
    path = write_recipe()
    published = clamp_shares(run_of(path, *settings, "cca.mode=published"), 70)
    adversarial = clamp_shares(run_of(path, *settings), 70)
    assert sum(published[-10:]) / 10 > 0.5
    assert sum(adversarial[-10:]) / 10 < 0.05


def test_watch_warns_with_the_cure_and_stops_a_collapse(write_recipe, caplog) -> None:
    watch = Watch(run_of(write_recipe()))
    for step in range(WINDOW):
        watch.check(step, {"clamp_share": 0.1})
    assert "10% of the auxiliary likelihoods are at the clamp" in caplog.text
    assert "lower lr or cca.auxiliary_weight" in caplog.text
    for step in range(WINDOW // 2 - 3):
        watch.check(WINDOW + step, {"clamp_share": 1.0})
    with pytest.raises(CollapseError, match=r"by --from STEP, with a lower stages\.base\.lr"):
        collapse(watch)


def collapse(watch: Watch) -> None:
    for step in range(WINDOW):
        watch.check(2 * WINDOW + step, {"clamp_share": 1.0})


def test_watch_lets_a_jump_pass_and_published_go_on(write_recipe, caplog) -> None:
    path = write_recipe()
    watch = Watch(run_of(path))
    watch.check(0, {"clamp_share": 1.0})
    for step in range(1, 2 * WINDOW):
        watch.check(step, {"clamp_share": 0.0})
    assert caplog.text == ""
    published = Watch(run_of(path, "cca.mode=published"))
    for step in range(2 * WINDOW):
        published.check(step, {"clamp_share": 1.0})
    assert "set cca.mode=adversarial" in caplog.text


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_the_step(write_recipe) -> None:
    run = run_of(write_recipe())
    training = trainer(run)
    with torch.no_grad():
        training.module.model.analysis.last.bias.fill_(float("nan"))
    before = {name: p.clone() for name, p in training.module.named_parameters()}
    with pytest.raises(TrainingError, match="the loss is not finite at step 0, on ") as caught:
        training.train()
    for name, parameter in training.module.named_parameters():
        assert torch.equal(parameter.nan_to_num(7), before[name].nan_to_num(7))
    folder = run.folder / "failure-step-00000000"
    assert (folder / "state.safetensors").is_file()
    with safe_open(folder / "batch-0.safetensors", "pt") as batch:
        assert tuple(batch.get_tensor("images").shape) == (4, 3, 64, 64)
        keys = json.loads(batch.metadata()["keys"])
    assert all(key in str(caught.value) for key in keys)


def test_a_gradient_that_is_not_finite_stops_before_the_step(write_recipe) -> None:
    run = run_of(write_recipe())
    training = trainer(run)
    training.module.model.analysis.last.bias.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match="the gradient of main is not finite"):
        training.train()
    assert not (run.folder / "model.safetensors").exists()


def test_main_and_auxiliary_gradients_are_clipped_apart(write_recipe) -> None:
    run = run_of(write_recipe(), "stages.0.clip=0.5")
    training = trainer(run)
    norms = {}
    step = torch.optim.Adam.step

    def seen(optimizer, *arguments):
        for group in optimizer.param_groups:
            grads = [p.grad for p in group["params"] if p.grad is not None]
            norms[group["name"]] = float(torch.nn.utils.get_total_norm(grads))
        return step(optimizer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", seen)
        found = training.try_step(next(training.feed.from_step(0)))
    assert set(METRICS) <= set(found)
    assert found["gradient_main"] > 0.5
    assert norms["main"] == pytest.approx(0.5, rel=1e-3)
    assert norms["auxiliary"] == pytest.approx(min(0.5, found["gradient_auxiliary"]), rel=1e-3)
