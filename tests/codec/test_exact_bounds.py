"""At the largest inputs that there can be, every sum is still the one of whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.codec.exact import exact_copy
from pipeline.codec.exact_layers import snap_weight
from pipeline.codec.light import exact as light

GRID, LARGEST = 2**12, 2**24 - 1  # inputs in units of the grid
FINEST = 2**40  # weights are multiples of its inverse, at the finest


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Weights (O, C) of any size and strength, some of one sign, some with one large entry."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    outputs, inputs = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 63, 1000, 8192]))
    weights = rng.standard_normal((outputs, inputs)) * 10.0 ** draw(st.integers(-6, 6))
    if draw(st.booleans()):
        weights = np.abs(weights)
    if draw(st.booleans()):
        weights[:, 0] *= 1000
    return torch.from_numpy(weights.astype(np.float32))


def worst(weights: Tensor) -> tuple[Tensor, list[int]]:
    """Return inputs (O, C), each the worst for one output, and the sums in whole units."""
    whole = [[int(w * FINEST) for w in row] for row in snap_weight(weights.double()).tolist()]
    signs = weights.sign()
    sums = [LARGEST * sum(map(abs, row)) for row in whole]
    return signs.double() * LARGEST / GRID, sums


def in_units(outputs: Any) -> list[int]:
    """Return the outputs (O, O)'s diagonal in units of both grids, exactly."""
    return [int(float(outputs[i, i]) * FINEST * GRID) for i in range(len(outputs))]


@given(matrices())
@settings(max_examples=40, deadline=None)
def test_the_worst_inputs_give_the_sums_of_whole_numbers(weights: Tensor) -> None:
    x, sums = worst(weights)
    outputs, inputs = weights.shape
    linear = nn.Linear(inputs, outputs, bias=False)
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    deconv = nn.ConvTranspose2d(inputs, outputs, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weights)
        conv.weight.copy_(weights[:, :, None, None])
        deconv.weight.copy_(weights.t()[:, :, None, None])
    pixels = x.t()[None, :, :, None]
    assert in_units(exact_copy(linear)(x)) == sums
    assert in_units(exact_copy(conv)(pixels)[0, :, :, 0].t()) == sums
    assert in_units(exact_copy(deconv)(pixels)[0, :, :, 0].t()) == sums
    matrix = light.ExactMatrix(weights.double().numpy()[:, :, None, None], np.zeros(outputs))
    assert in_units(matrix(x.numpy())) == sums


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 24]))
@settings(max_examples=20, deadline=None)
def test_taps_and_shifted_sums_are_those_of_whole_numbers(seed: int, channels: int) -> None:
    """3x3 convolutions whose every input is the largest, with the sign of its weight."""
    generator = torch.Generator().manual_seed(seed)
    dense = nn.Conv2d(channels, 1, 3, bias=False)
    taps = nn.Conv2d(channels, channels, 3, groups=channels, bias=False)
    for layer in (dense, taps):
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        for weight in layer.weight.detach().double():
            x = (weight.sign() * LARGEST / GRID).expand(channels, 3, 3)
            row = snap_weight(layer.weight.detach().double())
            found = exact_copy(layer)(x[None].clone())[0].flatten()
            wanted = [
                sum(int(w * FINEST) * int(v * GRID) for w, v in zip(a, b, strict=True))
                for a, b in _terms(row, x, layer.groups)
            ]
            assert [int(v * FINEST * GRID) for v in found.tolist()] == wanted


def _terms(weights: Tensor, x: Tensor, groups: int) -> list[tuple[list[float], list[float]]]:
    inputs = [x[i : i + 1] for i in range(len(x))] if groups > 1 else [x] * len(weights)
    return [
        (row.flatten().tolist(), part.flatten().tolist())
        for row, part in zip(weights, inputs, strict=True)
    ]


@pytest.mark.parametrize("channels", [1, 3, 512, 8192])
def test_a_norm_of_the_largest_numbers_is_the_same_in_any_order(channels: int) -> None:
    norm = light.ExactNorm(np.ones(channels), np.zeros(channels), 1e-6)
    signs = np.where(np.arange(channels) % 3 == 0, -1.0, 1.0)
    x, order = signs * LARGEST / GRID, np.random.default_rng(0).permutation(channels)
    assert np.array_equal(norm(x)[order], norm(x[order]))
