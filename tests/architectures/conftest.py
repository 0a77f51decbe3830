"""An installed package with a second architecture, which nothing of the project names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.codec import Model, architectures

INSTALLED = Path(__file__).with_name("installed")
NAME = "mean-scale"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install the package for the length of a test; return the folder it is in."""
    monkeypatch.syspath_prepend(str(INSTALLED))
    yield INSTALLED
    architectures.forget(NAME)


@pytest.fixture
def second(installed: Path) -> Model:
    """A model of the second architecture whose latents spread over bins."""
    made = architectures.load(NAME)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Model = made.model(made.presets["micro"])
        with torch.no_grad():
            model.get_parameter("analysis.4.weight").mul_(40)
            model.get_parameter("hyper_analysis.4.weight").mul_(10)
    return model.eval()
