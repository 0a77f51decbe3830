"""Augmentation on a CUDA device: the same shards from any number of workers, near a CPU's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.augment.operations import Augmenter
from shards.augment.spec import read_spec
from shards.options import augment_options
from tests.shards.making import SMALL, checksums, corpus, make
from tests.shards.test_augment import EVERYTHING, LIC, pictures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "everything.yaml"
    path.write_text(EVERYTHING)
    return path


def test_the_same_shards_from_any_workers(spec: Path, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", count=16)
    options = replace(SMALL, shard_size=50_000, augment=augment_options(str(spec), "auto"))
    assert options.augment["device"] == "cuda"
    for workers in (1, 2):
        make(source, tmp_path / str(workers), options, workers=workers)
    assert checksums(tmp_path / "1") == checksums(tmp_path / "2")


@pytest.mark.parametrize("name", ["everything", "lic"])
def test_pictures_are_a_cpu_s_to_rounding(spec: Path, name: str) -> None:
    chosen = read_spec(spec if name == "everything" else LIC)
    batch = pictures(12) if name == "everything" else _large(6)
    here = Augmenter(chosen, seed=3)(batch)
    there = Augmenter(chosen, seed=3, device="cuda")(batch)
    alone = Augmenter(chosen, seed=3, device="cuda")([batch[0]])
    for key, pixels in here.items():
        for one, other in zip(pixels, there[key], strict=True):
            assert np.abs(one.astype(int) - other.astype(int)).max() <= 2
    first = batch[0][0]
    for one, other in zip(there[first], alone[first], strict=True):
        assert np.array_equal(one, other)


def _large(count: int) -> list[tuple[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (count, 32, 40, 3), dtype=np.uint8)
    return [(f"large{n}", np.kron(p, np.ones((16, 16, 1), np.uint8))) for n, p in enumerate(small)]
