"""Models and pictures that the codec's tests share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.codec import AuxiliaryEntropyModel, CCAConfig, CCAModel

SMALL = CCAConfig(
    latent_channels=12,
    slices=3,
    transform_channels=(8, 8, 12),
    transform_blocks=(1, 1, 1),
    context_channels=8,
    context_blocks=1,
    hyper_latent_channels=6,
    head_channels=(8, 6),
)


@pytest.fixture(scope="session")
def small_config() -> CCAConfig:
    return SMALL


def make_model(config: CCAConfig, seed: int = 0) -> CCAModel:
    """A model whose every parameter matters: nothing starts at zero, latents spread over bins."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CCAModel(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("beta", "gamma")):
                    parameter.uniform_(-0.5, 0.5)
            model.analysis.last.weight.mul_(40)
            last: Any = model.hyper_analysis[-1]
            last.weight.mul_(10)
            model.hyper_density.quantiles[:, 0, 1].uniform_(-2, 2)
    return model.eval()


@pytest.fixture
def model(small_config: CCAConfig) -> CCAModel:
    return make_model(small_config)


@pytest.fixture
def auxiliary(small_config: CCAConfig) -> AuxiliaryEntropyModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AuxiliaryEntropyModel(small_config).eval()
