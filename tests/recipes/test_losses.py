"""The loss: its terms, and which way each gradient goes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from pipeline.common.addresses import text_seed
from recipes.config.load import load_recipe
from recipes.config.settings import Cca
from recipes.training.losses import Weights, reverse_gradient, weights_at
from recipes.training.module import METRICS, TrainingModule, build
from recipes.training.noise import draw_noise

CPU = torch.device("cpu")


def make(path: Path, *overrides: str) -> TrainingModule:
    module = build(load_recipe(path, overrides).runs()[0])
    return module.train()


def one_pass(module: TrainingModule, weights: Weights) -> dict[str, float]:
    config = module.model.config
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    loss, metrics = module(x, draw_noise(config, 64, [1, 2], CPU), weights)
    loss.backward()
    return dict(zip(METRICS, metrics.tolist(), strict=True))


def gradients(module: TrainingModule, part: str) -> torch.Tensor:
    found = [
        parameter.grad.flatten()
        for name, parameter in module.named_parameters()
        if name.startswith(part) and parameter.grad is not None
    ]
    return torch.cat(found)


def test_reversed_gradient_keeps_the_value() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x, 0.5)
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.tensor([-0.5, -0.5]))


def test_cost_is_weighted_distortion_plus_rate(write_recipe) -> None:
    found = one_pass(make(write_recipe(), "cca.mode=off"), Weights(0.3, 1, 1))
    assert found["cost"] == pytest.approx(found["distortion"] + 0.3 * found["bpp"], rel=1e-5)
    assert found["distortion"] == pytest.approx(0.05 * 255**2 * found["mse"], rel=1e-5)
    assert found["loss"] == pytest.approx(found["cost"], rel=1e-6)
    assert found["r_aux"] == found["gap"] == 0


def test_adversarial_terms(write_recipe) -> None:
    found = one_pass(make(write_recipe()), Weights(0.3, 2.0, 1.0))
    assert found["gap"] == pytest.approx(found["r_aux"] - found["r_main"], abs=1e-5)
    expected = found["cost"] + 2.0 * found["r_main"] + found["r_aux"]
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_published_terms(write_recipe) -> None:
    found = one_pass(make(write_recipe(), "cca.mode=published"), Weights(0.3, 1.0, 1.0))
    expected = found["cost"] + found["r_main"] - found["r_aux"] + found["l_aux"]
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_auxiliary_model_descends_in_adversarial_and_ascends_in_published(write_recipe) -> None:
    """The trap: whose rate do the auxiliary model's own gradients lower?"""
    adversarial = make(write_recipe())
    one_pass(adversarial, Weights(0.3, 1.0, 1.0))
    other_weight = make(write_recipe())
    one_pass(other_weight, Weights(0.3, 1.0, 7.0))
    # The reversal's weight reaches what y comes from, never the auxiliary model itself.
    mine, theirs = gradients(adversarial, "auxiliary"), gradients(other_weight, "auxiliary")
    torch.testing.assert_close(mine, theirs)
    assert not torch.allclose(
        gradients(adversarial, "model.analysis"), gradients(other_weight, "model.analysis")
    )
    published = make(write_recipe(), "cca.mode=published")
    one_pass(published, Weights(0.3, 1000.0, 1.0))
    # Not exactly opposite: bounds let only one direction pass.
    flipped, mine = gradients(published, "auxiliary.context"), gradients(adversarial, "auxiliary")
    assert torch.nn.functional.cosine_similarity(flipped, mine, dim=0) < -0.3


def test_reversed_half_changes_sign_with_its_weight(write_recipe) -> None:
    grads = []
    for weight in (0.0, 1.0, 2.0):
        module = make(write_recipe())
        one_pass(module, Weights(0.3, 1.0, weight))
        grads.append(gradients(module, "model.analysis"))
    torch.testing.assert_close(grads[2] - grads[1], grads[1] - grads[0], rtol=1e-3, atol=1e-4)


def test_detached_hyper_outputs_get_nothing_from_the_auxiliary_model(write_recipe) -> None:
    grads = []
    for weight in (0.0, 5.0):
        module = make(write_recipe(), "cca.hyper=detached")
        one_pass(module, Weights(0.3, 1.0, weight))
        grads.append(gradients(module, "model.hyper_mean"))
    assert torch.equal(*grads)


@pytest.mark.parametrize("shape", [(2, 3, 192, 192), (1, 3, 161, 250)])
def test_ms_ssim_is_that_of_the_library(shape: tuple[int, ...]) -> None:
    from pytorch_msssim import ms_ssim as reference

    from recipes.training.msssim import ms_ssim

    x = torch.rand(shape, generator=torch.manual_seed(3))
    other = (0.7 * x + 0.1 * torch.rand(shape)).requires_grad_()
    ours, theirs = ms_ssim(other, x), reference(other, x, data_range=1.0, size_average=False)
    assert torch.allclose(ours, theirs, rtol=1e-5)
    slope, wanted = (torch.autograd.grad(value.sum(), other)[0] for value in (ours, theirs))
    assert torch.allclose(slope, wanted, atol=1e-7)


def test_ms_ssim_of_a_reversed_picture_has_a_gradient() -> None:
    from recipes.training.msssim import ms_ssim

    x = torch.rand(1, 3, 192, 192, generator=torch.manual_seed(3))
    negative = (1 - x).requires_grad_()
    (gradient,) = torch.autograd.grad(ms_ssim(negative, x).sum(), negative)
    assert gradient.isfinite().all()


def test_ms_ssim_distortion_falls_to_zero_for_equal_pictures(write_recipe) -> None:
    from recipes.config.settings import Loss
    from recipes.training.losses import distortion

    x = torch.rand(1, 3, 192, 192)
    value = distortion(x, x, "ms-ssim", Loss())
    assert value == pytest.approx(0, abs=1e-4)
    worse = distortion(x, 1 - x, "ms-ssim", Loss(ms_ssim_weight=10))
    assert 0 < float(worse) <= 10.5


def test_every_distortion_of_a_recipe_can_be_computed() -> None:
    from recipes.config.schema import Stage
    from recipes.config.settings import Loss
    from recipes.training.losses import DISTORTIONS, distortion

    assert set(DISTORTIONS) == set(get_args(Stage.model_fields["distortion"].annotation))
    x = torch.rand(2, 3, 192, 192)
    for kind in DISTORTIONS:
        assert torch.isfinite(distortion(x, x.flip(-1), kind, Loss())).tolist() == [True, True]
        # A held-out picture may be of any size.
        small = x[:1, :, :8, :8]
        assert torch.isfinite(distortion(small, 1 - small, kind, Loss())).tolist() == [True]


def test_weights_warm_up_and_follow_the_rate() -> None:
    cca = Cca(weight=2, auxiliary_weight=1, warmup=10)
    assert Weights.at(0, 0.5, cca) == Weights(0.5, 0.2, 0.1)
    assert Weights.at(9, 0.5, cca) == Weights.at(99, 0.5, cca) == Weights(0.5, 2.0, 1.0)
    proportional = Cca(weight=2, proportional=True)
    assert Weights.at(0, 0.5, proportional) == Weights(0.5, 1.0, 1.0)


def test_the_weight_of_the_rate_grows_where_a_stage_says_so(write_recipe) -> None:
    run = load_recipe(write_recipe(), ["stages.0.rate_warmup=4", "cca.mode=off"]).runs()[0]
    shares = [weights_at(step, run, None).grown for step in (0, 2, 3, 9)]
    assert shares == [0.25, 0.75, 1.0, 1.0]
    found = one_pass(build(run), weights_at(0, run, None))
    # What is reported, and what others' weights are shares of, is the whole cost.
    assert found["cost"] == pytest.approx(found["distortion"] + 0.3 * found["bpp"], rel=1e-5)
    expected = found["distortion"] + 0.25 * 0.3 * found["bpp"]
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_noise_of_a_sample_does_not_depend_on_its_batch(write_recipe) -> None:
    config = make(write_recipe()).model.config
    together = draw_noise(config, 128, [text_seed("a"), text_seed("b")], CPU)
    alone = draw_noise(config, 128, [text_seed("b")], CPU)
    for name in ("y", "z", "aux_y", "aux_factorized"):
        assert torch.equal(together[name][1:], alone[name])
    assert together["y"].shape == (2, 12, 8, 8)
    assert together["z"].shape == (2, 8, 2, 2)
    assert -0.5 <= float(together["y"].min()) < -0.4
    assert 0.4 < float(together["y"].max()) < 0.5
    assert not torch.equal(together["y"], together["aux_y"])


def test_frozen_parts_get_no_gradient(write_recipe) -> None:
    module = make(write_recipe(), "stages.0.frozen=[analysis, 'hyper_*']")
    one_pass(module, Weights(0.3, 1, 1))
    trained = {name.split(".")[1] for name, p in module.named_parameters() if p.grad is not None}
    assert trained == {"synthesis", "context"}


def test_rates_are_counted_on_rounded_latents_where_a_stage_says_so(write_recipe) -> None:
    path, weights = write_recipe(), Weights(0.3, 1, 1)
    noisy, rounded = make(path), make(path, "stages.0.quantisation=rounded")
    rounded.load_state_dict(noisy.state_dict())
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        coded = noisy.model.eval()(x)
    bits = sum(-likelihoods.log2().sum() for likelihoods in coded.likelihoods.values())
    expected = bits.item() / (2 * 64 * 64)
    found = one_pass(rounded, weights)
    assert found["bpp"] == pytest.approx(expected, rel=1e-4)
    assert one_pass(noisy.train(), weights)["bpp"] != pytest.approx(expected, rel=1e-3)
    # Straight through: the rate teaches the transforms as well.
    assert gradients(rounded, "model.analysis").abs().sum() > 0


def test_the_entropy_model_alone_learns_from_rounded_latents(write_recipe) -> None:
    frozen = "stages.0.frozen=[analysis, synthesis]"
    module = make(write_recipe(), "cca.mode=off", "stages.0.quantisation=rounded", frozen)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 1e-2)
    costs = []
    for _ in range(6):
        found = one_pass(module, Weights(0.3, 1, 1))
        costs.append(found["bpp"])
        optimizer.step()
        module.zero_grad()
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("mode", ["off", "adversarial"])
def test_early_slices_are_pulled_to_their_share(write_recipe, mode: str) -> None:
    path = write_recipe()
    plain = one_pass(make(path, f"cca.mode={mode}"), Weights(0.3, 1, 1))
    pulled = make(path, f"cca.mode={mode}", "cca.early_share=0.9", "cca.early_weight=50")
    found = one_pass(pulled, Weights(0.3, 1, 1))
    assert found["early_share"] == pytest.approx(plain["early_share"])
    # The mean over two samples of the same size: their shares hardly differ.
    term = 50 * found["r_main"] * (found["early_share"] - 0.9) ** 2
    assert found["loss"] - plain["loss"] == pytest.approx(term, rel=0.02)
    assert found["cost"] == pytest.approx(plain["cost"])
    optimizer = torch.optim.Adam(pulled.model.analysis.parameters(), 1e-2)
    for _ in range(8):
        optimizer.step()
        pulled.zero_grad()
        after = one_pass(pulled, Weights(0.3, 1, 1))
    assert after["early_share"] > found["early_share"]
