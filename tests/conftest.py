"""Fixtures that every room's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder beside the checkout with more pictures and reference tensors."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the larger data set in ../shared, which is not there")
    return folder


@pytest.fixture(scope="session")
def pictures() -> Path:
    """The repository's own photographs: `train/*.jpg` and `kodak/*.webp`."""
    return ROOT / "recipes" / "demo" / "pictures"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Two pytest workers share two cores; more threads would only make them wait for each other.
    import torch

    torch.set_num_threads(1)
