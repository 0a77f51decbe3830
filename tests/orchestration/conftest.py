"""A recipe of two stages, and profiles for it."""

from __future__ import annotations

from pathlib import Path

import pytest

RECIPE = """
name: tiny
out: runs
model: tiny
data: {train: shards, validation: held-out}
stages:
  - {name: base, rate_weight: 1.8, steps: 20, batch: 4, crop: 64}
  - {name: mse, init: base, rate_weight: [0.3, 1.8], steps: 10, batch: 4, crop: 64}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe's file, in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return Path("tiny.yaml")


@pytest.fixture(scope="session")
def profiles(root: Path) -> Path:
    """The folder of the profiles that come with the project."""
    return root / "orchestration" / "profiles"
