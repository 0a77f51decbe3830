"""Several corpora in one exact order."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import SampleOrder, ShardsError, Stream
from shards.streaming.groups import GroupedOrder
from shards.streaming.mixture import PERIOD, MixedOrder, shares
from tests.shards.made import numbered, write_split


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(0.05, 1)),
        min_size=2,
        max_size=4,
    ),
    st.integers(1, 4),
    st.integers(0, 99),
    st.sampled_from([1, 2]),
)
def test_each_corpus_is_walked_in_its_own_order(corpora, block, seed, number):
    sizes, weights = [one for one, _ in corpora], [weight for _, weight in corpora]
    order = MixedOrder(sizes, weights, seed, block, number=number)
    length = len(order)
    assert length == sum(map(sum, sizes))
    taken = [order(*divmod(place, length)) for place in range(3 * length)]
    for corpus, own in enumerate(order.orders):
        seen = [(shard, index) for drawn, shard, index in taken if drawn == corpus]
        assert seen == [own(*divmod(count, len(own))) for count in range(len(seen))]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_weights_are_kept_exactly_in_each_period(weights):
    wanted = np.asarray(weights) / sum(weights) * PERIOD
    try:
        found = shares(weights)
    except ShardsError:
        assert wanted.min() < 1
        return
    assert found.sum() == PERIOD
    assert (abs(found - wanted) < 1).all()
    order = MixedOrder([[700], *([[600]] * (len(weights) - 1))], weights)
    if len(weights) > 1 and len(order) >= PERIOD:
        counts = Counter(order(0, place)[0] for place in range(PERIOD))
        assert [counts[number] for number in range(len(weights))] == list(found)


@pytest.mark.parametrize("number", [1, 2])
def test_one_corpus_has_its_own_order(number):
    own = (SampleOrder if number == 1 else GroupedOrder)([4, 9, 2], 5, 2)
    mixed = MixedOrder([[4, 9, 2]], [3.0], 5, 2, number=number)
    assert [mixed(2, p) for p in range(15)] == [(0, *own(2, p)) for p in range(15)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    samples = numbered(60)
    write_split(folder / "a", [20, 20], [(f"a{key}", data) for key, data in samples[:40]])
    write_split(folder / "b", [5, 15], [(f"b{key}", data) for key, data in samples[40:]])
    return {folder / "a": 1, folder / "b": 3}


def test_a_mixture_is_the_same_on_any_ranks_and_resumes(two):
    alone = list(islice(Stream(two, batch_size=12, crop=8, seed=1), 9))
    drawn = Counter(key[0] for batch in alone for key in batch.keys)
    assert 0.65 < drawn["b"] / drawn.total() < 0.85
    state = alone[3].state
    parts = []
    for rank in range(3):
        resumed = Stream(two, batch_size=4, crop=8, seed=1, rank=rank, world_size=3, workers=rank)
        resumed.load_state_dict(state)
        parts.append(list(islice(resumed, 5)))
        resumed.close()
    for whole, *shared in zip(alone[4:], *parts, strict=True):
        order = torch.tensor([slot for part in shared for slot in part.slots]).argsort()
        keys = [key for part in shared for key in part.keys]
        assert whole.keys == [keys[place] for place in order]
        assert torch.equal(whole.images, torch.cat([part.images for part in shared])[order])


def test_mixtures_that_make_no_sense_are_refused(two, tmp_path):
    one = next(iter(two))
    with pytest.raises(ShardsError, match="positive weights"):
        Stream({one: 0}, batch_size=1)
    with pytest.raises(ShardsError, match="leave a corpus without one of"):
        shares([1.0, 1e-9])
    write_split(tmp_path / "none", [], [])
    with pytest.raises(ShardsError, match="no samples"):
        Stream({one: 1, tmp_path / "none": 1}, batch_size=1)
