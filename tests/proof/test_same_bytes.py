"""The same bytes enter the model in every way of training: the short form of the proof."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof.same_bytes import corpora, digest, ways

BATCHES = 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one corpus", "3 to 1 mixture"])
def test_every_way_of_training_sees_the_same_bytes(name: str, tmp_path: Path) -> None:
    dest = corpora(tmp_path)[name]
    digests = {way.name: digest(way, BATCHES) for way in ways(dest, tmp_path, BATCHES, seed=0)}
    assert len(digests) >= 13
    assert len(set(digests.values())) == 1, digests
