"""The order of training as arithmetic."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.addresses import hash_words, permutation
from shards.errors import ShardsError
from shards.streaming.order import SampleOrder

GOLDEN_ORDER = [(3, 0), (3, 1), (0, 0), (2, 2), (2, 1), (0, 2), (2, 0), (2, 3), (0, 1)]
GOLDEN_HASH = 0x6AE515C1C0AC7E37

sizes_of_shards = st.lists(st.integers(0, 30), min_size=1, max_size=20).filter(sum)


@settings(max_examples=60, deadline=None)
@given(sizes_of_shards, st.integers(-5, 2**70), st.integers(1, 24), st.integers(0, 10**9))
def test_an_epoch_has_every_sample_once(sizes, seed, block, epoch):
    order = SampleOrder(sizes, seed, block)
    seen = [order(epoch, position) for position in range(len(order))]
    assert len(seen) == sum(sizes)
    assert set(seen) == {(shard, i) for shard, size in enumerate(sizes) for i in range(size)}


@settings(max_examples=40, deadline=None)
@given(sizes_of_shards, st.integers(1, 24), st.data())
def test_a_position_does_not_depend_on_what_was_asked_before(sizes, block, data):
    order = SampleOrder(sizes, 3, block)
    wanted = data.draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, sum(sizes) - 1)), max_size=30)
    )
    for epoch, position in wanted:
        assert order(epoch, position) == SampleOrder(sizes, 3, block)(epoch, position)


@settings(max_examples=40, deadline=None)
@given(sizes_of_shards, st.integers(1, 24))
def test_a_position_is_read_from_the_shards_of_its_block(sizes, block):
    order = SampleOrder(sizes, 1, block)
    for position in range(len(order)):
        shards = order.block_shards(2, position)
        assert len(shards) <= block
        assert order(2, position)[0] in shards


def test_blocks_follow_each_other_until_the_epoch_ends():
    order = SampleOrder([5] * 7, seed=1, block=3)
    blocks = [order.block_shards(0, 0, ahead) for ahead in range(4)]
    assert [len(one) for one in blocks] == [3, 3, 1, 0]
    assert sorted(chain.from_iterable(blocks)) == list(range(7))
    assert blocks[1] == order.block_shards(0, 15)


def test_epochs_and_seeds_differ():
    def first(seed: int, epoch: int) -> list[tuple[int, int]]:
        order = SampleOrder([50] * 10, seed, 4)
        return [order(epoch, p) for p in range(100)]

    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


def test_the_order_is_what_it_was():
    # A change here changes every training run that is resumed: it needs a new format of state.
    order = SampleOrder([3, 0, 4, 2], seed=7, block=2)
    assert [order(5, position) for position in range(9)] == GOLDEN_ORDER
    assert hash_words(1, 2, 3) == GOLDEN_HASH


def test_permutations_are_fair():
    # Each value falls on each place about equally often: chi-square with 49 degrees of freedom.
    counts = np.zeros((8, 8))
    for key in range(4000):
        counts[np.arange(8), permutation(hash_words(key), 8)] += 1
    chi = ((counts - 500) ** 2 / 500).sum()
    assert 20 < chi < 90


def test_bad_numbers_are_refused():
    with pytest.raises(ShardsError, match="block is 0"):
        SampleOrder([1], block=0)
    with pytest.raises(IndexError):
        SampleOrder([1])(0, 1)
