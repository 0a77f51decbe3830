"""The model from outside: configuration, shapes, gradients, noise, quantiles."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import (
    AuxiliaryEntropyModel,
    CCAConfig,
    CCAModel,
    CodecError,
    Noise,
    start_as_pyramid,
)
from pipeline.codec.densities import lower_bound


def test_published_size_has_the_published_numbers() -> None:
    with torch.device("meta"):
        model, auxiliary = CCAModel(), AuxiliaryEntropyModel()
    assert CCAConfig().slice_sizes == (8, 28, 56, 92, 136)
    assert sum(p.numel() for p in model.parameters()) == 64_988_067
    assert sum(p.numel() for p in auxiliary.parameters()) == 29_265_356


@given(st.integers(1, 400), st.integers(2, 8), st.floats(0, 3))
@settings(deadline=None)
def test_slices_cover_the_latent_or_are_refused(channels: int, slices: int, power: float) -> None:
    try:
        config = CCAConfig(latent_channels=channels, slices=slices, slice_exponent=power)
    except CodecError:
        return
    assert sum(config.slice_sizes) == channels
    assert min(config.slice_sizes) > 0


@pytest.mark.parametrize(
    ("mapping", "word"),
    [
        ({"latent_chanels": 3}, "latent_chanels"),
        ({"latent_channels": 0}, "latent_channels"),
        ({"latent_channels": True}, "latent_channels"),
        ({"slices": "five"}, "slices"),
        ({"transform_channels": [1, 2]}, "transform_channels"),
        ({"transform_channels": [3, 4, 6]}, "even"),
        ({"transform_channels": 192}, "transform_channels"),
        ({"head_channels": [0, 4]}, "head_channels"),
        ({"slice_exponent": float("nan")}, "slice_exponent"),
        ({"latent_channels": 2}, "slices"),
    ],
)
def test_config_refuses_what_makes_no_model(mapping: dict[str, object], word: str) -> None:
    with pytest.raises(CodecError, match=word):
        CCAConfig.from_mapping(mapping)


def test_config_survives_a_round_trip() -> None:
    for config in (CCAConfig(), CCAConfig.tiny()):
        assert CCAConfig.from_mapping(config.to_dict()) == config


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (64, 64), (65, 3)])
def test_any_size_keeps_its_shape(model: CCAModel, size: tuple[int, int]) -> None:
    with torch.no_grad():
        output = model(torch.rand(2, 3, *size))
    rows, columns = -(-size[0] // 64), -(-size[1] // 64)
    assert output.x_hat.shape == (2, 3, *size)
    assert output.y.shape == output.y_hat.shape == output.means.shape == output.scales.shape
    assert output.y.shape == (2, 12, 4 * rows, 4 * columns)
    assert output.likelihoods["z"].shape == (2, 6, rows, columns)


@pytest.mark.parametrize("x", [torch.rand(3, 8, 8), torch.rand(1, 1, 8, 8), torch.ones(1, 3, 2, 2,
                         dtype=torch.uint8), torch.rand(0, 3, 8, 8)])  # fmt: skip
def test_other_shapes_are_refused(model: CCAModel, x: torch.Tensor) -> None:
    with pytest.raises(CodecError, match="N, 3, H, W"):
        model(x)


def _loss(output: object) -> torch.Tensor:
    likelihoods = output.likelihoods
    bits = sum(-value.log2().sum() for value in likelihoods.values())
    return bits + output.x_hat.square().sum()


def test_every_parameter_but_the_quantiles_is_trained_by_a_pass(model: CCAModel) -> None:
    _loss(model.train()(torch.rand(1, 3, 64, 64))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == ["hyper_density.quantiles"]


def test_quantile_loss_reaches_the_quantiles_alone(
    model: CCAModel, auxiliary: AuxiliaryEntropyModel
) -> None:
    (model.quantile_loss() + auxiliary.quantile_loss()).backward()
    for module in (model, auxiliary):
        own = {id(p) for p in module.quantiles()}
        assert all((p.grad is not None) == (id(p) in own) for p in module.parameters())


def test_training_noise_decides_the_pass(model: CCAModel) -> None:
    model.train()
    x = torch.rand(1, 3, 64, 64)
    noise = Noise(y=torch.rand(1, 12, 4, 4) - 0.5, z=torch.rand(1, 6, 1, 1) - 0.5)
    first, again, other = model(x, noise), model(x, noise), model(x)
    assert torch.equal(first.likelihoods["y"], again.likelihoods["y"])
    assert not torch.equal(first.likelihoods["y"], other.likelihoods["y"])
    assert torch.equal(first.x_hat, other.x_hat)
    with pytest.raises(CodecError, match="noise of shape"):
        model(x, Noise(y=torch.zeros(1, 12, 4, 5)))


def test_auxiliary_without_its_density_leaves_it_untrained(
    model: CCAModel, auxiliary: AuxiliaryEntropyModel
) -> None:
    output = model.train()(torch.rand(1, 3, 64, 64))
    found = auxiliary.train()(output.y, output.hyper, factorized=False)
    assert found.likelihoods_factorized is None
    (-found.likelihoods_y.log2().sum()).backward()
    without = {name.split(".")[0] for name, p in auxiliary.named_parameters() if p.grad is None}
    assert without == {"density"}


def test_a_batch_is_its_pictures(model: CCAModel) -> None:
    x = torch.rand(3, 3, 64, 128)
    with torch.no_grad():
        together = model(x)
        apart = [model(picture[None]) for picture in x]
    assert torch.allclose(together.x_hat, torch.cat([one.x_hat for one in apart]), atol=1e-4)


def test_lower_bound_lets_only_raising_gradients_pass_below() -> None:
    x = torch.tensor([0.05, 0.05, 0.11, 0.5], requires_grad=True)
    weights = torch.tensor([1.0, -1.0, 1.0, 1.0])
    bounded = lower_bound(x, 0.11)
    (bounded * weights).sum().backward()
    assert bounded.tolist() == pytest.approx([0.11, 0.11, 0.11, 0.5])
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, -1.0, 1.0, 1.0]


def test_a_pyramid_starts_with_a_picture() -> None:
    # A smooth picture: what a pyramid of wavelets keeps.
    rows, columns = torch.arange(128.0).view(-1, 1), torch.arange(192.0)
    x = (0.5 + 0.4 * torch.sin(rows / 20) * torch.cos(columns / 25)).expand(1, 3, -1, -1)
    torch.manual_seed(0)
    model = CCAModel(CCAConfig.tiny()).eval()
    start_as_pyramid(model)
    with torch.no_grad():
        output = model(x)
    assert -10 * (output.x_hat - x).square().mean().log10() > 25


def with_shortcuts() -> CCAConfig:
    return replace(CCAConfig.tiny(), shortcuts=True)


def test_shortcuts_carry_a_picture_linearly_beside_the_transforms() -> None:
    torch.manual_seed(0)
    model = CCAModel(with_shortcuts()).eval()
    model.requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[1] in ("down", "up", "blocks", "last"):
                parameter.zero_()
    x, other = torch.rand(2, 1, 3, 64, 96)
    y, y_other = model.analysis(x), model.analysis(other)
    assert y.shape == (1, 48, 4, 6)
    torch.testing.assert_close(model.analysis(x + other), y + y_other)
    # Orthonormal at the start: nothing grows on its way, there or back.
    back = model.synthesis(y)
    assert back.shape == x.shape
    assert x.norm() >= y.norm() >= back.norm() > y.norm() / 2


def test_a_pyramid_leaves_shortcuts_for_later() -> None:
    config = with_shortcuts()
    x = torch.rand(1, 3, 64, 64, generator=torch.manual_seed(1))
    found = []
    for one in (config, replace(config, shortcuts=False)):
        torch.manual_seed(0)
        model = CCAModel(one).eval()
        start_as_pyramid(model)
        found.append(model.analysis(x))
    torch.testing.assert_close(found[0], found[1])


def test_a_config_says_that_there_are_shortcuts_only_where_there_are() -> None:
    assert "shortcuts" not in CCAConfig.tiny().to_dict()
    assert CCAConfig.from_mapping(with_shortcuts().to_dict()) == with_shortcuts()
    with pytest.raises(CodecError, match="shortcuts must be true or false"):
        CCAConfig.from_mapping({"shortcuts": 1})


@pytest.mark.slow
def test_model_compiles_to_the_same_numbers(model: CCAModel) -> None:
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(compiled(x).x_hat, model(x).x_hat, atol=1e-5)
