"""The settings of `speed`: evaluation computes as the codec does, whatever they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.evaluation.pictures import read_picture
from recipes.config.load import load_recipe
from recipes.config.settings import Speed
from recipes.training import speed
from recipes.training.losses import Weights
from recipes.training.module import build
from recipes.training.noise import draw_noise
from recipes.training.validate import reconstruct

WEIGHTS = Weights(rate=0.3, main=1.0, auxiliary=1.0)


@pytest.fixture
def modules(write_recipe):
    """Two modules with the same weights."""
    run = load_recipe(write_recipe(), []).runs()[0]
    return build(run).train(), build(run).train()


def loss(module) -> torch.Tensor:
    x = torch.linspace(0, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
    found, _ = module(x, draw_noise(module.model.config, 64, range(2), x.device), WEIGHTS)
    return found


def test_bf16_trains_near_float32_and_evaluates_in_it(modules, pictures: Path) -> None:
    plain, fast = modules
    speed.apply(fast, Speed(precision="bf16"))
    one, other = loss(plain), loss(fast)
    assert not torch.equal(one, other)
    assert torch.allclose(one, other, rtol=3e-2)
    picture = read_picture(pictures / "kodak" / "kodim01.webp")[:128, :192]
    plain.eval(), fast.eval()
    (decoded, bpp), (again, same) = (reconstruct(m.model, picture) for m in (plain, fast))
    assert bpp == same
    assert (decoded == again).all()


def test_recomputed_activations_give_the_same_gradients(modules) -> None:
    plain, thrifty = modules
    speed.apply(thrifty, Speed(activation_checkpointing=True))
    for module in modules:
        loss(module).backward()
    for one, other in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert one.grad is None if other.grad is None else torch.equal(one.grad, other.grad)


def test_the_stacks_are_of_seven_shapes(modules) -> None:
    shapes = [tuple(p.shape for p in stack.parameters()) for stack in speed.stacks(modules[0])]
    config = modules[0].model.config
    assert len(shapes) == 6 + 2 * 2 * config.slices
    assert len(set(shapes)) <= 7
