"""Samples that are held out of a stream are spread over the shards, and never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardsError
from shards.options import Options
from shards.reading.corpus import Corpus
from shards.reading.opening import open_corpora
from shards.run import shard
from shards.streaming.holding import held_out_pictures, trained_sizes
from shards.streaming.stream import Stream


def of_sizes(*corpora: Sequence[int]) -> list[Corpus]:
    return cast(list[Corpus], [SimpleNamespace(sizes=list(sizes)) for sizes in corpora])


SIZES = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=8), min_size=1, max_size=3)


@settings(deadline=None)
@given(SIZES, st.integers(0, 30))
def test_as_many_as_asked_for_are_held_out_and_no_shard_gives_more_than_its_share(
    sizes: list[list[int]], count: int
) -> None:
    total = sum(map(sum, sizes))
    if total <= count:
        with pytest.raises(ShardsError, match="can't be held out"):
            trained_sizes(of_sizes(*sizes), count)
        return
    trained = trained_sizes(of_sizes(*sizes), count)
    assert total - sum(int(one.sum()) for one in trained) == count
    for corpus, left in zip(sizes, trained, strict=True):
        for size, kept in zip(corpus, left.tolist(), strict=True):
            assert 0 <= kept <= size
            assert size - kept <= count * size / total + 1


def test_no_epoch_has_a_held_out_picture(tmp_path: Path, pictures: Path) -> None:
    shard(
        [str(pictures / "train")], tmp_path, Options(split="train", shard_size=200_000), workers=1
    )
    corpora, _ = open_corpora(str(tmp_path), "train", None, 8)
    held = dict(held_out_pictures(corpora, 5))
    assert len(held) == 5
    assert all(data[:2] == b"\xff\xd8" for data in held.values())
    stream = Stream(str(tmp_path), batch_size=1, crop=16, held_out=5, epochs=2)
    seen = [key for batch in stream for key in batch.keys]
    whole = Stream(str(tmp_path), batch_size=1, crop=16)
    assert len(seen) == 2 * (whole.samples - 5)
    assert len(set(seen)) == whole.samples - 5
    assert not held.keys() & set(seen)
