"""The order whose groups keep to their own part of the corpus."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardsError
from shards.reading.index import Span
from shards.streaming.ahead import Ahead
from shards.streaming.groups import SMALLEST, GroupedOrder
from shards.streaming.mixture import MixedOrder
from shards.streaming.order import SampleOrder
from tests.shards.made import write_split

GOLDEN_ORDER = [(0, 2), (2, 1), (3, 1), (3, 0), (0, 0), (0, 1), (2, 2), (2, 3), (2, 0)]
GOLDEN_GROUPS = [2, 0, 3, 1, 3, 1, 2, 0, 3, 1]

sizes_of_shards = st.lists(st.integers(0, 300), min_size=1, max_size=20).filter(sum)
seeds = st.integers(-5, 2**70)


def whole(order: GroupedOrder, epoch: int) -> tuple[np.ndarray, ...]:
    positions = np.arange(len(order))
    return *order.at(epoch, positions), order.group(epoch, positions)


@settings(max_examples=60, deadline=None)
@given(
    sizes_of_shards, seeds, st.integers(1, 24), st.sampled_from([1, 8, 64]), st.integers(0, 9**9)
)
def test_an_epoch_has_every_sample_once(sizes, seed, block, groups, epoch):
    order = GroupedOrder(sizes, seed, block, groups)
    shards, indices, _ = whole(order, epoch)
    seen = set(zip(shards.tolist(), indices.tolist(), strict=True))
    assert len(shards) == sum(sizes)
    assert seen == {(shard, i) for shard, size in enumerate(sizes) for i in range(size)}


@settings(max_examples=40, deadline=None)
@given(sizes_of_shards, seeds, st.sampled_from([8, 64]), st.integers(0, 99))
def test_groups_are_equal_to_a_sample_and_keep_to_their_part_of_the_line(
    sizes, seed, groups, epoch
):
    order = GroupedOrder(sizes, seed, 4, groups)
    assert order.groups == 1 or sum(sizes) >= SMALLEST * order.groups
    parts = []
    for one in (0, epoch):
        shards, indices, group = whole(order, one)
        counts = np.bincount(group, minlength=order.groups)
        assert counts.max() - counts.min() <= 1
        parts.append(sorted(zip(shards.tolist(), indices.tolist(), group.tolist(), strict=True)))
    assert parts[0] == parts[1]
    # In each shard the groups follow each other: a group's part of it is one run.
    changes = sum(
        a[0] == b[0] and a[2] != b[2] for a, b in zip(parts[0], parts[0][1:], strict=False)
    )
    assert changes <= order.groups - 1


@settings(max_examples=40, deadline=None)
@given(sizes_of_shards, st.integers(1, 24), st.data())
def test_a_position_does_not_depend_on_what_was_asked_before(sizes, block, data):
    order = GroupedOrder(sizes, 3, block, 8)
    place = st.tuples(st.integers(0, 3), st.integers(0, sum(sizes) - 1))
    for epoch, position in data.draw(st.lists(place, max_size=30)):
        assert order(epoch, position) == GroupedOrder(sizes, 3, block, 8)(epoch, position)


orders = st.builds(
    lambda kind, sizes, block: kind(sizes, 1, block),
    st.sampled_from([SampleOrder, partial(GroupedOrder, groups=16)]),
    sizes_of_shards,
    st.integers(1, 6),
)


@settings(max_examples=60, deadline=None)
@given(orders, st.integers(1, 4), st.integers(1, 20), st.data())
def test_what_is_read_was_named_and_is_not_over(order, world, step, data):
    """Whatever the pace: each sample that a rank reads was named before, as often as it is over."""
    rank = data.draw(st.integers(0, world - 1))
    position = data.draw(st.integers(0, 2 * len(order)))
    most = data.draw(st.sampled_from([0, 100, math.inf]))
    ahead = Ahead(order, position, rank, world)
    mine = order.groups_of(rank, world)
    named: set[Span] = set()
    for _ in range(12):
        fresh, over = ahead.reach(position, step, most)
        assert not named & set(fresh)
        named |= set(fresh)
        assert set(over) <= named
        named -= set(over)
        for number in range(position, position + step):
            epoch, place = divmod(number, len(order))
            if int(order.group(epoch, np.asarray([place]))[0]) in mine:
                shard, index = order(epoch, place)
                assert any(one.shard == shard and one.first <= index < one.end for one in named)
        position += step


def test_shards_without_samples_are_walked_through():
    ahead = Ahead(SampleOrder([0, 1, 0, 0], 1, 1), 0, 0, 1)
    named = [span for position in range(5) for span in ahead.reach(position, 1, 0)[0]]
    assert {(span.shard, span.first, span.end) for span in named} >= {(1, 0, 1)}


@pytest.mark.parametrize("position", range(361, 370))
def test_a_window_that_ends_where_reading_begins_is_not_over(position):
    ahead = Ahead(GroupedOrder([69, 300], 1, 6, groups=16), position, 0, 1)
    fresh, over = ahead.reach(position, 1, 0)
    assert fresh
    assert not over


def test_what_is_named_grows_with_what_was_read():
    order = GroupedOrder([100] * 96, 0, 8)
    ahead, held = Ahead(order, 0, 0, 1), 0
    seen = []
    for position in range(0, 4001, 100):
        fresh, over = ahead.reach(position, 0, 1000)
        held += sum(one.end - one.first for one in fresh)
        held -= sum(one.end - one.first for one in over)
        seen.append(held)
    windows = 2 * order.groups * order.window
    assert seen[0] <= windows
    assert all(later <= windows + min(100 * one, 1000) for one, later in enumerate(seen))
    assert seen[-1] >= 1000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(sizes_of_shards, min_size=1, max_size=3),
    st.integers(1, 70),
    st.integers(1, 4),
    st.integers(0, 3),
    st.data(),
)
def test_every_place_of_a_global_batch_goes_to_one_rank(corpora, world, each, epoch, data):
    order = MixedOrder(corpora, [1.0] * len(corpora), 5, 4)
    count = world * each
    if count > len(order):
        return
    seen = data.draw(st.integers(0, len(order) - count))
    dealt = [order.dealt(epoch, seen, count, rank, world) for rank in range(world)]
    assert [len(one) for one in dealt] == [each] * world
    assert all((np.diff(one) > 0).all() for one in dealt)
    assert sorted(np.concatenate(dealt)) == list(range(seen, seen + count))


def groups_of_ranks(order: MixedOrder, batch: int, world: int) -> list[set[int]]:
    """The groups that each rank meets in a quarter of an epoch."""
    met: list[set[int]] = [set() for _ in range(world)]
    for seen in range(0, len(order) // 4 - batch + 1, batch):
        for rank, groups in enumerate(met):
            own = order.dealt(0, seen, batch, rank, world)
            groups.update(order.orders[0].group(0, own).tolist())
    return met


@pytest.mark.parametrize(("batch", "world"), [(8, 8), (64, 8), (256, 8), (16, 4), (32, 32), (6, 2)])
def test_ranks_take_whole_groups_that_are_neighbours(batch, world):
    order = MixedOrder([[100] * 96], [1.0], 1, 8)
    met = groups_of_ranks(order, batch, world)
    share = order.orders[0].groups // world
    if batch % 64 == 0 or 64 % batch == 0:
        assert met == [set(range(share * rank, share * (rank + 1))) for rank in range(world)]
    else:
        assert all(len(one) <= share + 6 for one in met)


@pytest.mark.parametrize("world", [3, 5, 6, 7, 12])
def test_other_world_sizes_meet_little_more_than_their_share(world):
    order = MixedOrder([[100] * 96], [1.0], 1, 8)
    met = groups_of_ranks(order, 16 * world, world)
    assert max(len(one) for one in met) <= 64 / world + 4
    for one in met:
        assert max(one) - min(one) == len(one) - 1


def test_epochs_and_seeds_differ():
    def first(seed: int, epoch: int) -> list[tuple[int, int]]:
        order = GroupedOrder([50] * 10, seed, 4)
        return [order(epoch, p) for p in range(100)]

    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


def test_the_order_is_what_it_was():
    # A change here changes every training run that is resumed: it needs a new number.
    order = GroupedOrder([3, 0, 4, 2], seed=7, block=2)
    assert [order(5, position) for position in range(9)] == GOLDEN_ORDER
    grouped = GroupedOrder([100] * 3, seed=7, block=2)
    assert grouped.groups == 4
    assert grouped.group(5, np.arange(10)).tolist() == GOLDEN_GROUPS


def test_it_shuffles_no_worse_than_blocks_of_whole_shards():
    # Sorted shards, the worst case: 80 of 2,500 samples, blocks of 8.
    order = GroupedOrder([2500] * 80, 0, 8)
    shards, indices, _ = whole(order, 0)
    assert (shards[1:] == shards[:-1]).mean() < 0.1255
    batches = shards[: len(shards) // 256 * 256].reshape(-1, 256)
    assert np.mean([len(np.unique(one)) for one in batches]) > 8.1
    assert batches.mean(axis=1).std() / (shards.std() / 16) < 6.9
    positions = np.empty((80, 2500), dtype=np.int64)
    positions[shards, indices] = np.arange(len(order))
    apart = np.median(np.abs(np.diff(positions, axis=1)))
    assert apart > 5800  # of neighbours in a shard; two of a block's 20,000 are 5,858 apart


def test_a_million_shards_of_ten_thousand_samples_are_dealt_to_a_thousand_ranks():
    order = MixedOrder([np.full(1_000_000, 10_000)], [1.0], 0, 8)
    assert len(order) == 10**10
    dealt = [order.dealt(3, 9 * 10**9, 8000, rank, 1000) for rank in (0, 1, 500, 999)]
    assert all(len(one) == 8 for one in dealt)
    corpora, shards, indices = order.at(3, dealt[2])
    assert not corpora.any()
    assert (indices < 10_000).all()
    assert (shards < 1_000_000).all()


def test_a_thousand_ranks_have_equal_shares_and_nothing_twice():
    order = MixedOrder([np.full(1_000_000, 10_000)], [1.0], 0, 8)
    seen, count = 7 * 10**9, 2000
    dealt = [order.dealt(3, seen, count, rank, 1000) for rank in range(1000)]
    assert {len(one) for one in dealt} == {2}
    positions = np.concatenate(dealt)
    assert sorted(positions) == list(range(seen, seen + count))
    _, shards, indices = order.at(3, positions)
    assert len(set(zip(shards.tolist(), indices.tolist(), strict=True))) == count


def test_bad_numbers_are_refused():
    with pytest.raises(ShardsError, match="block is 0"):
        GroupedOrder([1], block=0)
    with pytest.raises(ShardsError, match="groups is 3: give a power of two"):
        GroupedOrder([1], groups=3)
    with pytest.raises(IndexError):
        GroupedOrder([1])(0, 1)
    with pytest.raises(ShardsError, match="order 9 is not known"):
        MixedOrder([[1]], [1.0], number=9)


def test_inspect_says_what_each_node_will_fetch(tmp_path, monkeypatch):
    from shards.inspecting import streaming

    monkeypatch.setattr(streaming, "part_size", lambda total, nodes: 1000)
    write_split(tmp_path, [100] * 8, [(f"{i:03d}", bytes(2000)) for i in range(800)])
    alone = streaming.stream_facts(tmp_path, "train", 1)
    total = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert (alone.fetched, alone.share) == (total, 1)
    shared = streaming.stream_facts(tmp_path, "train", 4, block=1, rate=100)
    assert 0.25 <= shared.share <= 1.1 / 4
    assert shared.bandwidth == 100 * total / 800 / 4
    assert shared.kept <= shared.once == shared.fetched
    with pytest.raises(ShardsError, match="0 nodes"):
        streaming.stream_facts(tmp_path, "train", 0)
