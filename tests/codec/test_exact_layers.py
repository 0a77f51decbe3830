"""Every layer that the exact copy takes computes what torch does; every other one is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec import CodecError
from pipeline.codec.exact import exact_copy
from pipeline.codec.exact_code import only_exact
from pipeline.codec.exact_layers import snap
from pipeline.codec.layers import ChannelNorm, MaskedConv2d

# Weights are rounded to 2^-27 of the largest sum; inputs are on the grid already.
CLOSE = 1e-5
QUICK = settings(max_examples=60, deadline=None)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A convolution of any setting and an input that it takes."""
    transposed = draw(st.booleans())
    groups = draw(st.sampled_from([1, 2, 3]))
    channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    pair = st.tuples
    kernel = draw(pair(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(pair(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(pair(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(pair(st.integers(0, 3), st.integers(0, 3)))
    bias = draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 2**31)))
    size = draw(pair(st.integers(5, 9), st.integers(5, 9)))
    x = torch.randn(draw(st.integers(1, 2)), channels[0], *size) * 10 ** draw(st.integers(-2, 2))
    layer: nn.Module
    if transposed:
        extra: Any = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
        layer = nn.ConvTranspose2d(
            *channels, kernel, stride, padding, extra, groups, bias, dilation
        )
    else:
        mode: Any = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
        how: Any = draw(st.sampled_from(["same", "valid", padding]))
        assume(how != "same" or stride == (1, 1))
        layer = nn.Conv2d(*channels, kernel, stride, how, dilation, groups, bias, padding_mode=mode)
    return layer, x


def expected(layer: nn.Module, x: Tensor) -> Tensor:
    """What torch makes of the input on the grid, in float64."""
    with torch.no_grad():
        result: Tensor = layer.double()(snap(x.double()))
    return result


@given(convolutions())
@QUICK
def test_a_convolution_of_any_setting_is_torch_s_or_refused(case: tuple[nn.Module, Tensor]) -> None:
    layer, x = case
    try:
        wanted = expected(layer, x)
    except RuntimeError:
        assume(False)
        raise
    made: Any = layer
    if any(o >= s for o, s in zip(made.output_padding, made.stride, strict=True)):
        with pytest.raises(CodecError, match="output_padding"):
            exact_copy(layer)
        return
    found = exact_copy(layer)(x.double())
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= CLOSE * max(1.0, float(x.abs().max()))


@given(convolutions(), st.integers(0, 2**31))
@QUICK
def test_no_sum_of_a_convolution_has_an_order(case: tuple[nn.Module, Tensor], seed: int) -> None:
    """The same weights and inputs with their channels permuted give the same bits."""
    layer, x = case
    if layer.groups > 1 or isinstance(layer, nn.ConvTranspose2d):
        assume(isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    try:
        here = exact_copy(layer)(x.double())
        dim = 0 if isinstance(layer, nn.ConvTranspose2d) else 1
        with torch.no_grad():
            layer.weight.copy_(layer.weight.index_select(dim, order))
        there = exact_copy(layer)(x.double()[:, order])
    except (CodecError, RuntimeError):
        assume(False)
        raise
    assert torch.equal(here, there)


@pytest.mark.parametrize("mask", ["A", "B", "checkerboard"])
@pytest.mark.parametrize("groups", [1, 3])
def test_masked_contexts_are_exact(mask: str, groups: int) -> None:
    torch.manual_seed(0)
    layer = MaskedConv2d(6, 9, 5, mask, groups=groups)
    x = torch.randn(2, 6, 8, 7)
    assert (exact_copy(layer)(x.double()) - expected(layer, x)).abs().max() < CLOSE


def test_a_checkerboard_sees_the_other_colour_alone() -> None:
    layer = MaskedConv2d(1, 1, 5, "checkerboard")
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.zero_()
        seen = layer(x)[0, 0].nonzero()
    assert len(seen) == 12
    assert all((int(row) + int(column)) % 2 == 1 for row, column in seen)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(),
        nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.ReLU6(), nn.Hardtanh(),
        nn.Identity(),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_pointwise_and_linear_layers_are_torch_s(layer: nn.Module, spread: float) -> None:
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1)) * spread
    assert (exact_copy(layer)(snap(x.double())) - expected(layer, x)).abs().max() < CLOSE


def test_a_layer_used_twice_is_exact_in_both_places() -> None:
    torch.manual_seed(0)
    shared = nn.Conv2d(4, 4, 3, padding=1)
    exact = exact_copy(nn.Sequential(shared, nn.ReLU(), shared))
    assert exact[0] is exact[2]
    assert not isinstance(exact[2], nn.Conv2d)


class _Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.GroupNorm(2, 4), "GroupNorm"),
        (nn.Softmax(1), "Softmax"),
        (nn.LayerNorm(4), "LayerNorm"),
        (nn.BatchNorm2d(4), "BatchNorm2d"),
        (nn.AvgPool2d(2), "AvgPool2d"),
        (nn.AdaptiveAvgPool2d(1), "AdaptiveAvgPool2d"),
        (nn.Conv1d(4, 4, 3), "Conv1d"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "Upsample"),
        (nn.Softplus(), "Softplus"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention"),
        (_Doubled(4, 4, 1), "_Doubled"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "Conv2d"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_layers_are_refused_by_name(layer: nn.Module, name: str) -> None:
    module = nn.ModuleDict({"context": nn.Sequential(nn.ReLU(), layer)})
    with pytest.raises(CodecError, match=rf"context\.1 \(.*{name}.*no exact form"):
        exact_copy(module)


def test_hooks_are_refused() -> None:
    layer = nn.Conv2d(4, 4, 1)
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(CodecError, match="hooks"):
        exact_copy(nn.Sequential(layer))


X = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Work = Callable[[Tensor], object]


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum(1), lambda x: x.mean(), lambda x: x @ x, lambda x: F.softmax(x, 1),
        lambda x: torch.einsum("nchw,ndhw->ncd", x, x), lambda x: x.exp(), lambda x: x.sigmoid(),
        lambda x: F.gelu(x), lambda x: F.layer_norm(x, (6,)), lambda x: F.conv2d(x, x[:, :, :3]),
        lambda x: x / 3, lambda x: torch.add(x, x, alpha=3), lambda x: torch.lerp(x, x, 0.3),
        lambda x: x.addcmul(x, x), lambda x: x**3, lambda x: F.interpolate(x, 9, mode="bilinear"),
        lambda x: x.cumsum(1), lambda x: F.avg_pool2d(x, 2), lambda x: torch.norm(x),
        lambda x: F.scaled_dot_product_attention(x, x, x), lambda x: x.std(), lambda x: 1.5**x,
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_code_between_layers_may_not_sum(work: Work, mode: Callable[[], Any]) -> None:
    with pytest.raises(CodecError, match="between its layers"), mode(), only_exact("the model"):
        work(X)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x * x + x - x, lambda x: x / x, lambda x: x / 4, lambda x: (x * x).sqrt(),
        lambda x: x.round().clamp(-1, 1), lambda x: torch.cat(x.chunk(2, 1)), lambda x: x**2,
        lambda x: torch.where(x > 0, x, -x), lambda x: x.permute(0, 2, 3, 1).reshape(2, -1),
        lambda x: x[:, :, ::2, 1::2].contiguous(), lambda x: x[x > 0], lambda x: F.pad(x, (1, 1)),
        lambda x: F.pixel_shuffle(x, 2), lambda x: F.relu(x), lambda x: F.leaky_relu(x, 0.2),
        lambda x: (x > 0).sum(), lambda x: x.float().double(), lambda x: x.unsqueeze(0).squeeze(0),
        lambda x: torch.arange(6) % 2 == 0, lambda x: x.masked_fill(x < 0, 0.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_code_between_layers_may_work_on_each_number_and_move_it(
    work: Work, mode: Callable[[], Any]
) -> None:
    with mode(), only_exact("the model"):
        work(X)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_layers_themselves_may(mode: Callable[[], Any]) -> None:
    exact = exact_copy(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), ChannelNorm(4), nn.GELU()))
    with mode(), only_exact("the model"):
        exact(X)
