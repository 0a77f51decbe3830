"""Batches: exact order, exact resume, crops as arithmetic."""

from __future__ import annotations

import hashlib
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from shards import Batch, ShardsError, ShardsRuntimeError, Stream, stream
from shards.streaming.whole_pictures import pictures
from tests.shards.made import encoded, numbered, photo, write_split

SIZES = [5, 9, 1, 7, 3, 12]  # 37 samples


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_split(folder, SIZES, numbered(sum(SIZES)))
    return folder


def signature(batch: Batch) -> list[tuple[str, str]]:
    """Key and pixel hash of each picture."""
    return [one for _, one in placed(batch)]


def placed(batch: Batch) -> list[tuple[int, tuple[str, str]]]:
    """Place in the global batch, and key and pixel hash, of each picture."""
    return [
        (slot, (key, hashlib.sha256(image.numpy().tobytes()).hexdigest()))
        for slot, key, image in zip(batch.slots, batch.keys, batch.images, strict=True)
    ]


def global_batches(corpus: Path, count: int, ranks: int, state: dict[str, int] | None, **options):
    """The next `count` global batches (8 pictures, by hash) and the state after them."""
    streams = [
        Stream(
            corpus, batch_size=8 // ranks, crop=16, seed=5, rank=rank, world_size=ranks, **options
        )
        for rank in range(ranks)
    ]
    for one in streams:
        if state is not None:
            one.load_state_dict(state)
    parts = [[placed(batch) for batch in islice(one, count)] for one in streams]
    states = [one.state_dict() for one in streams]
    for one in streams:
        one.close()
    assert all(other == states[0] for other in states)
    return [
        [one for _, one in sorted(chain(*batch))] for batch in zip(*parts, strict=True)
    ], states[0]


def test_a_batch_is_what_the_interface_says(corpus):
    batches = list(stream(corpus, split="train", batch_size=8, crop=16))
    assert len(batches) == 4
    for number, batch in enumerate(batches):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (8, 3, 16, 16)
        assert batch.positions == list(range(8 * number, 8 * number + 8))
        assert len(batch.keys) == 8
    assert len({key for batch in batches for key in batch.keys}) == 32


def test_crops_are_parts_of_their_pictures(corpus):
    whole = dict(pictures(corpus, "train"))
    flipped = 0
    for batch in stream(corpus, batch_size=1, crop=16):
        crop = batch.images[0].permute(1, 2, 0).numpy()
        views = np.lib.stride_tricks.sliding_window_view(whole[batch.keys[0]], (16, 16, 3))
        views = views.reshape(-1, 16, 16, 3)
        plain = (views == crop).all(axis=(1, 2, 3)).any()
        turned = (views == crop[:, ::-1]).all(axis=(1, 2, 3)).any()
        assert plain or turned
        flipped += bool(turned)
    assert 8 < flipped < 29


def test_flips_can_be_left_out(corpus):
    whole = dict(pictures(corpus, "train"))
    for batch in islice(stream(corpus, batch_size=1, crop=40, flip=False), 20):
        crop = batch.images[0].permute(1, 2, 0).numpy()
        views = np.lib.stride_tricks.sliding_window_view(whole[batch.keys[0]], (40, 40, 3))
        assert (views.reshape(-1, 40, 40, 3) == crop).all(axis=(1, 2, 3)).any()


def test_small_pictures_are_mirrored(tmp_path):
    pixels = photo(1, 5, 30)
    write_split(tmp_path, [1], [("a", encoded(pixels))])
    batch = next(stream(tmp_path, batch_size=1, crop=16, flip=False))
    crop = batch.images[0].permute(1, 2, 0).numpy()
    assert np.array_equal(crop[5:10], crop[4::-1])
    views = np.lib.stride_tricks.sliding_window_view(pixels, (5, 16, 3)).reshape(-1, 5, 16, 3)
    assert (views == crop[:5]).all(axis=(1, 2, 3)).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 16), st.integers(1, 4), st.integers(1, 8), st.integers(0, 37))
def test_ranks_share_each_global_batch(corpus, world, per_rank, block, start):
    total = world * per_rank
    if total > 37:
        with pytest.raises(ShardsError, match=rf"37 samples.*{total} "):
            Stream(corpus, batch_size=per_rank, world_size=world)
        return
    options = {"crop": 4, "block": block, "start": start, "epoch": 3}
    alone = stream(corpus, batch_size=total, **options)
    ranks = [
        stream(corpus, batch_size=per_rank, rank=rank, world_size=world, **options)
        for rank in range(world)
    ]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert whole.positions == sorted(chain(*(part.positions for part in parts)))
        assert signature(whole) == [one for _, one in sorted(chain(*map(placed, parts)))]
        assert all(part.state == whole.state for part in parts)


@pytest.mark.slow
def test_workers_change_nothing(corpus):
    alone, end = global_batches(corpus, 11, 1, None, workers=0)
    for workers in (1, 2, 3, 4):
        assert global_batches(corpus, 11, 1, None, workers=workers) == (alone, end)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 7), st.sampled_from([1, 2, 4, 8])), max_size=6))
def test_resuming_on_other_ranks_goes_on_exactly(corpus, cuts):
    state, seen = None, []
    for count, ranks in cuts:
        batches, state = global_batches(corpus, count, ranks, state)
        seen += batches
    assert seen == global_batches(corpus, len(seen), 1, None)[0]


def test_the_state_counts_what_was_received(corpus):
    endless = Stream(corpus, batch_size=8, crop=16, workers=2)
    received = iter(endless)
    assert endless.state_dict() == {"epoch": 0, "samples_seen": 0, "order": 2}
    for number in range(6):
        batch = next(received)
        assert batch.state == endless.state_dict()
        assert batch.epoch == number // 4
    assert endless.state_dict() == {"epoch": 1, "samples_seen": 16, "order": 2}
    endless.close()
    assert next(iter(endless)).state == {"epoch": 1, "samples_seen": 24, "order": 2}
    endless.close()


def test_a_state_from_before_there_were_orders_goes_on_in_the_first(corpus):
    first = [batch.keys for batch in stream(corpus, batch_size=4, crop=16, order=1)]
    assert first != [batch.keys for batch in stream(corpus, batch_size=4, crop=16)]
    for state in ({"epoch": 0, "samples_seen": 8}, {"epoch": 0, "samples_seen": 8, "order": 1}):
        resumed = Stream(corpus, batch_size=4, crop=16, epochs=1)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == {"epoch": 0, "samples_seen": 8, "order": 1}
        assert [batch.keys for batch in resumed] == first[2:]
    with pytest.raises(ShardsError, match="counts in order 1, the stream was opened with order 2"):
        Stream(corpus, batch_size=4, crop=16, order=2).load_state_dict(state)
    with pytest.raises(ShardsError, match="order 7 is not known here"):
        resumed.load_state_dict({**state, "order": 7})


def test_epochs_differ_and_go_on(corpus):
    endless = Stream(corpus, batch_size=8, crop=16)
    first, second = (
        [key for batch in islice(endless, endless.batches_per_epoch) for key in batch.keys]
        for _ in range(2)
    )
    assert first != second
    finite = Stream(corpus, batch_size=8, crop=16, epochs=1)
    assert [key for batch in finite for key in batch.keys] == first
    assert finite.state_dict() == {"epoch": 1, "samples_seen": 0, "order": 2}
    assert [key for batch in finite for key in batch.keys] == second


def test_a_dataloader_may_hold_the_stream(corpus):
    plain = [signature(batch) for batch in stream(corpus, batch_size=8, crop=16)]
    finite = Stream(corpus, batch_size=8, crop=16, epochs=1)
    loader = DataLoader(finite, batch_size=None, num_workers=2)
    assert [signature(batch) for batch in loader] == plain


def test_the_processs_random_numbers_are_left_alone(corpus):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with_workers = Stream(corpus, batch_size=8, crop=16, workers=1)
    next(iter(with_workers))
    with_workers.close()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_broken_samples_are_replaced_counted_and_named(tmp_path):
    samples = numbered(40)
    for bad in (3, 17, 29):
        samples[bad] = (samples[bad][0], samples[bad][1][:200])
    write_split(tmp_path, [20, 20], samples)
    for workers in (0, 2):
        batches = Stream(tmp_path, batch_size=4, crop=16, epochs=1, workers=workers)
        received = list(batches)
        assert [batch.positions for batch in received] == [
            list(range(first, first + 4)) for first in range(0, 40, 4)
        ]
        assert sorted(batches.broken) == ["0003", "0017", "0029"]
        assert not {key for batch in received for key in batch.keys} & set(batches.broken)
        assert sum(len(batch.skipped) for batch in received) >= 3


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_samples_in_a_row_stop_the_run(tmp_path, workers):
    write_split(tmp_path, [30], [(f"{i}", b"no picture") for i in range(30)])
    with pytest.raises(ShardsRuntimeError, match="5 broken samples in a row"):
        next(iter(Stream(tmp_path, batch_size=4, crop=8, max_broken=5, workers=workers)))


def test_a_shard_that_is_gone_is_no_broken_sample(corpus, tmp_path):
    write_split(tmp_path, [4, 4], numbered(8))
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(ShardsRuntimeError, match=r"train-000001\.tar"):
        list(stream(tmp_path, batch_size=8, crop=16))


def test_user_errors_say_what_to_do(corpus, tmp_path):
    with pytest.raises(ShardsError, match=r"37 samples, fewer than one global batch of 40"):
        Stream(corpus, batch_size=10, world_size=4)
    with pytest.raises(ShardsError, match=r"no manifest train\.json"):
        Stream(tmp_path, batch_size=1)
    with pytest.raises(ShardsError, match="rank 2 of 2"):
        Stream(corpus, batch_size=1, rank=2, world_size=2)
    with pytest.raises(ShardsError, match="batch_size is 0"):
        Stream(corpus, batch_size=0)
    with pytest.raises(ShardsError, match="epoch has 37 samples"):
        Stream(corpus, batch_size=1).load_state_dict({"epoch": 0, "samples_seen": 38})
    with pytest.raises(ShardsError, match="epoch, samples_seen and order"):
        Stream(corpus, batch_size=1).load_state_dict({"step": 3})


def test_whole_pictures_come_in_stored_order(corpus, tmp_path):
    read = list(pictures(corpus, "train"))
    assert [key for key, _ in read] == [f"{i:04d}" for i in range(37)]
    assert np.array_equal(read[9][1], photo(9))
    write_split(tmp_path, [1], [("bad", b"")])
    with pytest.raises(ShardsRuntimeError, match="bad"):
        list(pictures(tmp_path, "train"))
