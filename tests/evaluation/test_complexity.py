"""What a model costs, counted by hooks, and where its bits go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.codec import load_model
from pipeline.evaluation.complexity import count_parameters, counted, parts_table
from pipeline.evaluation.ratemap import rate_map


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 5, stride=2, padding=2), (1, 3, 16, 16), 8 * 8 * 8 * 3 * 25),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), (1, 8, 4, 4), 8 * 4 * 4 * 9),
        (nn.ConvTranspose2d(6, 4, 5, 2, 2, output_padding=1), (1, 6, 4, 4), 6 * 4 * 4 * 4 * 25),
        (nn.Linear(7, 5), (2, 7), 2 * 7 * 5),
    ],
)
def test_layers_are_counted_as_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    model = nn.Sequential(layer)
    with counted(model) as found:
        model(torch.zeros(shape))
    model(torch.zeros(shape))  # After the block nothing is counted.
    assert found == {"0": macs}


def test_parts_add_up(model_files: list[Path]) -> None:
    model = load_model(model_files[0])
    total, parts = parts_table(model)
    assert sum(part["parameters"] for part in parts) == count_parameters(model)
    assert sum(part["kmac_per_pixel"] for part in parts) == pytest.approx(total)
    costs = {part["part"]: part["kmac_per_pixel"] for part in parts}
    # The first convolution alone: 8 x 3 x 25 at every fourth pixel.
    assert costs["analysis"] > 8 * 3 * 25 / 4 / 1000
    assert min(costs[name] for name in ("synthesis", "context", "hyper_analysis")) > 0


def test_the_rate_map_covers_the_picture_and_its_sum_is_the_rate(model_files: list[Path]) -> None:
    model = load_model(model_files[0])
    x = torch.rand(1, 3, 130, 70, generator=torch.Generator().manual_seed(0))
    found = rate_map(model, x)
    assert found.y.shape == (9, 5)
    with torch.inference_mode():
        likelihoods = model(x).likelihoods
    assert sum(found.groups.values()) == pytest.approx(
        float(-likelihoods["y"].log2().sum()), rel=1e-4
    )
    assert found.side_bits == pytest.approx(float(-likelihoods["z"].log2().sum()), rel=1e-4)
    assert 0 < found.y.sum() < sum(found.groups.values())
    assert len(found.groups) == model.config.slices
