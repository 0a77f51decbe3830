"""What recipes of today may say of data, losses, rates and speed, and what comes of it."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.codec.architectures.cca import CCAConfig
from pipeline.common.progress import silent
from recipes.config.load import load_recipe
from recipes.config.settings import Loss
from recipes.launching.signals import StopRequest
from recipes.training import deciding, threads
from recipes.training.checkpoint import Checkpoint
from recipes.training.data import Feed
from recipes.training.held_out import digest, held_out
from recipes.training.losses import Weights, balanced, between, distortion
from recipes.training.noise import spread_rates
from recipes.training.resume import differences
from recipes.training.session import Session

LAUNCH = ("python", "accelerate", "launch")
CPU = torch.device("cpu")


def alone(device: str = "cpu", kind: str = "NO") -> Any:
    return SimpleNamespace(
        num_processes=1,
        is_main_process=True,
        device=torch.device(device),
        distributed_type=SimpleNamespace(value=kind),
    )


@pytest.mark.parametrize(
    ("overrides", "begun", "parent", "expected"),
    [
        ([], None, [], 1),
        (["stages.0.crop=256"], None, [], 4),
        (["speed.threads=3"], 2, [], 3),
        ([], 2, [], 2),
        ([], 64, [], 1),
        ([], -3, [], 1),
        (["stages.0.crop=256"], None, [*LAUNCH, "--num_cpu_threads_per_process=2", "train.py"], 2),
    ],
)
def test_threads_are_the_recipes_and_stay(
    write_recipe, monkeypatch, overrides: list[str], begun: int | None, parent, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr("recipes.training.threads.usable_cores", lambda: 4)
    monkeypatch.setattr("recipes.launching.ranks.ancestors", lambda: [parent])
    run = load_recipe(write_recipe(), overrides).runs()[0]
    session = Session(alone(), StopRequest(), silent)
    kept = None if begun is None else Checkpoint(Path("unused"), {"threads": begun})
    assert threads.settle(run, session, kept) == expected == torch.get_num_threads()
    assert session.ignored == {"OMP_NUM_THREADS": "7"}
    on_gpu = Session(alone("cuda"), StopRequest(), silent)
    assert threads.settle(run, on_gpu, kept) is None
    assert torch.get_num_threads() == expected


def test_pictures_of_the_shards_are_held_out_of_training(write_recipe) -> None:
    run = load_recipe(write_recipe(), ["data.held_out=3"]).runs()[0]
    pictures = held_out(run)
    assert len(pictures) == 3
    assert all(one.read().shape[2] == 3 for one in pictures)
    assert digest(pictures) == digest(held_out(run)) != ""
    feed = Feed(run, 0, 1, CPU)
    seen = {key for batch in islice(feed.from_step(0), 20) for key in batch.keys}
    feed.close()
    assert not seen & {one.name for one in pictures}
    # A folder of one's own comes first, and then all pictures are trained on.
    other = load_recipe(write_recipe(), ["data.held_out=3", "data.validation=somewhere"]).runs()[0]
    assert other.data.spared == 0
    assert differences(run, {"decisive": other.decisive()}) == {"held_out": (0, 3)}


def test_each_shape_of_a_stage_is_fed_from_any_step_on(write_recipe) -> None:
    shapes = [
        "stages.0.mix=[{crop: 128, batch: 2}]",
        "stages.0.phases=[{step: 5, crop: 192, batch: 1}]",
    ]
    run = load_recipe(write_recipe(), shapes).runs()[0]
    feed = Feed(run, 0, 1, CPU)
    through = list(islice(feed.from_step(0), 8))
    sizes = [tuple(batch.images.shape) for batch in through]
    assert sizes[:5] == [(4, 3, 64, 64), (2, 3, 128, 128)] * 2 + [(4, 3, 64, 64)]
    assert sizes[5:] == [(1, 3, 192, 192)] * 3
    for step in (1, 4, 6):
        for whole, again in zip(through[step:], feed.from_step(step), strict=False):
            assert whole.keys == again.keys
            assert torch.equal(whole.images, again.images)
    feed.close()


def test_a_stage_has_data_loss_average_and_optimizer_of_its_own(write_recipe) -> None:
    stages = [
        {"name": "base", "rate_weight": 0.3, "steps": 6, "crop": 64},
        {
            **{"name": "fine", "rate_weight": 0.3, "steps": 6, "crop": 64, "ema": 0},
            **{"data": {"train": "elsewhere", "flip": False}, "loss": {"mse_weight": 1.0}},
            "optimizer": "adamw",
        },
    ]
    base, fine = load_recipe(write_recipe(stages=stages), ["ema=0.99"]).runs()
    assert (base.ema, fine.ema) == (0.99, None)
    assert (base.loss.mse_weight, fine.loss.mse_weight) == (0.05, 1.0)
    assert (base.optimizer.name, fine.optimizer.name) == ("adam", "adamw")
    assert fine.data.train == "elsewhere"
    changed = differences(fine, {"decisive": base.decisive()})
    assert changed.keys() == {"name", "ema", "flip", "loss", "optimizer"}


def test_what_an_older_version_did_not_know_had_its_default(write_recipe) -> None:
    run = load_recipe(write_recipe()).runs()[0]
    old = run.decisive()
    for key in ("optimizer", "held_out", "milestones", "phases", "rates", "decay"):
        del old[key]
    del old["loss"]["balance"]
    assert differences(run, {"decisive": old}) == {}
    changed = load_recipe(write_recipe(), ["loss.balance=0.5"]).runs()[0]
    assert differences(changed, {"decisive": old}).keys() == {"loss"}


def test_spread_rates_are_even_and_the_same_for_any_processes() -> None:
    config = CCAConfig.tiny().__class__.from_mapping(
        CCAConfig.tiny().to_dict() | {"rate_weights": [16, 4, 1, 0.25]}
    )
    rates = spread_rates(config, 7, 32, range(32), range(100, 132), CPU)
    parts = (rates / 3 * 32).floor().sort().values
    assert torch.equal(parts, torch.arange(32.0))
    own = spread_rates(config, 7, 32, [30, 31], [130, 131], CPU)
    assert torch.equal(own, rates[30:])
    assert not torch.equal(spread_rates(config, 8, 32, range(32), range(100, 132), CPU), rates)
    known = torch.tensor([16.0, 4.0, 1.0, 0.25])
    found = between(known, torch.tensor([0.0, 0.5, 3.0]))
    assert found.tolist() == pytest.approx([16, 8, 0.25])


def test_a_balanced_loss_is_divided_by_a_power_of_the_rate_weight() -> None:
    weights = Weights(torch.tensor([16.0, 0.25]), 0.0, 0.0)
    cost = torch.tensor([8.0, 8.0])
    assert balanced(cost, weights, Loss(balance=0.5)).tolist() == [2.0, 16.0]
    assert balanced(cost, weights, Loss()) is cost


def test_a_mixed_distortion_is_the_sum_of_both() -> None:
    x, x_hat = torch.rand(2, 2, 3, 192, 192, generator=torch.manual_seed(0)).unbind()
    both = distortion(x, x_hat, "mixed", Loss())
    one, other = (distortion(x, x_hat, kind, Loss()) for kind in ("mse", "ms-ssim"))
    assert torch.allclose(both, one + other)


@pytest.mark.parametrize(("ratio", "precision"), [(0.2, "fp32"), (1.05, "fp32"), (2.0, "bf16")])
def test_a_cpu_trains_in_what_it_computes_faster(
    write_recipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ratio: float,
    precision: str,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(deciding, "gain", lambda: ratio)
    run = load_recipe(write_recipe(), ["speed=auto"]).runs()[0]
    made = deciding.decided(run, alone(), None)
    assert made.speed.precision == precision
    assert made.speed.compile is made.speed.cuda_graphs is False
    assert f"bf16 is {ratio:.2f} times as fast here" in caplog.text
    assert "no cuda_graphs: there is no GPU" in caplog.text
    # A run keeps to what it began with, and a change of machine is no change of settings.
    for begun in ("fp32", "bf16"):
        about = made.decisive() | {"precision": begun}
        assert deciding.decided(run, alone(), about).speed.precision == begun
        assert differences(run, {"decisive": about}) == {}


def test_a_gpu_falls_back_with_a_sentence(
    write_recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    run = load_recipe(write_recipe(), ["speed=auto"]).runs()[0]
    made = deciding.decided(run, alone("cuda"), None).speed
    assert (made.precision, made.compile, made.cuda_graphs) == ("bf16", False, True)
    assert "no compile: Triton is not there" in caplog.text
    made = deciding.decided(run, alone("cuda", "DEEPSPEED"), None).speed
    assert made.cuda_graphs is False
    assert "no cuda_graphs: DeepSpeed moves weights" in caplog.text


def test_recipes_for_gpus_ship_the_fast_settings_and_judge_by_no_test_picture(root: Path) -> None:
    for name in ("cca-paper", "cca-paper-8-nodes", "imagenet", "flickr", "msssim", "variable-rate"):
        recipe = load_recipe(root / "recipes" / f"{name}.yaml")
        assert recipe.speed.precision == recipe.speed.compile == recipe.speed.cuda_graphs == "auto"
        assert recipe.data.validation is None
        assert recipe.data.spared == 24
        assert recipe.data.test == "recipes/demo/pictures/kodak"
