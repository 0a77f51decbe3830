"""The exact networks: near the float ones, and the same for any order of work."""

from __future__ import annotations

import pytest
import torch

from pipeline.codec import CCAModel, CodecError
from pipeline.codec.exact import exact_copy


def _coded(model: CCAModel, x: torch.Tensor) -> tuple[torch.Tensor, bytes]:
    with torch.no_grad():
        output = model(x)
    tile = model.coder().encode(output.y)
    return tile.y_hat, tile.words.tobytes()


def test_exact_networks_are_near_the_float_ones(model: CCAModel) -> None:
    x = torch.rand(1, 3, 128, 192)
    with torch.no_grad():
        expected = model(x).y_hat
    found, _ = _coded(model, x)
    assert (found - expected).abs().max() < 1e-2
    assert (found - expected).abs().mean() < 1e-3


def test_any_number_of_threads_gives_the_same_bits(model: CCAModel) -> None:
    x = torch.rand(1, 3, 256, 320)
    with torch.no_grad():
        output = model(x)
    coder, found = model.coder(), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            tile = coder.encode(output.y)
            found.append((tile.y_hat, tile.words.tobytes()))
    finally:
        torch.set_num_threads(before)
    for y_hat, words in found[1:]:
        assert torch.equal(y_hat, found[0][0])
        assert words == found[0][1]


@pytest.mark.parametrize("part", ["hyper_mean", "context.mean_supports.2", "context.scale_heads.1"])
def test_batch_size_and_memory_format_don_t_matter(model: CCAModel, part: str) -> None:
    module = model.get_submodule(part)
    exact = exact_copy(module)
    channels = next(module.parameters()).shape[0 if part == "hyper_mean" else 1]
    x = torch.randn(5, channels, 9, 7, dtype=torch.float64) * 8
    with torch.no_grad():
        together = exact(x.contiguous(memory_format=torch.channels_last))
        apart = torch.cat([exact(picture[None]) for picture in x])
        floats = module(x.float())
    assert torch.equal(together, apart)
    assert torch.allclose(together.float(), floats, atol=5e-3, rtol=1e-3)


def test_order_of_channels_in_a_sum_doesn_t_matter() -> None:
    torch.manual_seed(3)
    layer, shuffled = (torch.nn.Conv2d(200, 7, 3, padding=1) for _ in range(2))
    order = torch.randperm(200)
    with torch.no_grad():
        shuffled.weight.copy_(layer.weight[:, order])
        shuffled.bias.copy_(layer.bias)
    x = torch.randn(1, 200, 6, 5, dtype=torch.float64) * 100
    assert torch.equal(
        exact_copy(torch.nn.Sequential(layer))(x),
        exact_copy(torch.nn.Sequential(shuffled))(x[:, order]),
    )


def test_weights_that_are_no_numbers_are_refused(model: CCAModel) -> None:
    with torch.no_grad():
        next(model.hyper_mean.parameters())[0] = float("nan")
    with pytest.raises(CodecError, match="not finite"):
        model.compress(torch.rand(1, 3, 8, 8))
