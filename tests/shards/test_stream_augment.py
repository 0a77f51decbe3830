"""Batches on the device, and augmentation there: functions of the position alone."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from shards import Augment, ShardsError, Stream
from tests.shards.made import encoded, numbered, photo, write_split

EVERYTHING = Augment(crop=16, downscale=0.5, flip=0.5, colour=0.3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_split(folder, [20, 20], numbered(40))
    return folder


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """uint8 (12, 3, 32, 32)."""
    return torch.stack([torch.from_numpy(photo(i, 32, 32).copy()) for i in range(12)]).permute(
        0, 3, 1, 2
    )


def test_pictures_become_floats_of_the_crops_size(images):
    out = EVERYTHING(images, 0, 0, list(range(12)))
    assert out.shape == (12, 3, 16, 16)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 11), st.permutations(range(12)), st.integers(0, 5))
def test_a_picture_does_not_depend_on_its_batch(images, cut, order, epoch):
    positions = [100 + 7 * number for number in range(12)]
    whole = EVERYTHING(images, 3, epoch, positions)
    for part in (order[:cut], order[cut:]):
        alone = EVERYTHING(images[part], 3, epoch, [positions[number] for number in part])
        assert torch.equal(alone, whole[part])


def test_positions_epochs_and_seeds_differ(images):
    same = images[:1].expand(4, -1, -1, -1)
    first = EVERYTHING(same, 0, 0, [0, 1, 2, 3])
    assert len({one.numpy().tobytes() for one in first}) == 4
    assert not torch.equal(first, EVERYTHING(same, 0, 1, [0, 1, 2, 3]))
    assert not torch.equal(first, EVERYTHING(same, 1, 0, [0, 1, 2, 3]))


def test_crop_and_flip_alone_keep_the_pixels(images):
    out = Augment(crop=16)(images, 0, 0, list(range(12)))
    flips = 0
    for image, crop in zip(images, out, strict=True):
        views = np.lib.stride_tricks.sliding_window_view(image.numpy(), (3, 16, 16))
        views = views.reshape(-1, 3, 16, 16) / np.float32(255)
        plain = (views == crop.numpy()).all(axis=(1, 2, 3)).any()
        turned = (views == crop.numpy()[..., ::-1]).all(axis=(1, 2, 3)).any()
        assert plain or turned
        flips += bool(turned)
    assert 0 < flips < 12


def test_downscaling_averages_what_it_leaves_out():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.integers(0, 256, (1, 3, 64, 64), dtype=np.uint8))
    out = Augment(crop=8, downscale=0.125, flip=0)(noise.expand(40, -1, -1, -1), 0, 0, [*range(40)])
    small = out.std(dim=(1, 2, 3))
    assert small.min() < 0.12  # taken at full scale the noise's deviation is 0.29
    assert small.max() > 0.15


def test_small_pictures_are_scaled_by_less_and_show_no_mirrored_edge():
    ramp = torch.arange(24, dtype=torch.uint8).expand(3, 20, 24) * 10  # grows from left to right
    mirrored = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    mirrored[:, :, :20, :24] = ramp
    augment = Augment(crop=16, downscale=0.5, flip=0)
    out = augment(mirrored, 0, 0, [*range(40)], [(20, 24)] * 40)
    assert out.diff(dim=-1).min() > 0.03  # a black edge or a turn would fall
    steps = out[:, 0, 0].diff(dim=-1).mean(dim=-1)
    assert steps.max() > 1.2 * steps.min()  # scales differ where there is room


def test_a_stream_tells_what_is_mirrored(tmp_path):
    pictures = [(f"{i}", encoded(photo(i, 20 + 8 * i, 24), "PNG")) for i in range(4)]
    write_split(tmp_path, [4], pictures)
    batch = next(iter(Stream(tmp_path, batch_size=4, crop=32)))
    assert dict(zip(batch.keys, batch.extents, strict=True)) == {
        "0": (20, 24),
        "1": (28, 24),
        "2": (32, 24),
        "3": (32, 24),
    }


def test_colour_changes_are_mild_and_leave_shapes(images):
    plain = Augment(crop=32, flip=0)(images, 0, 0, list(range(12)))
    coloured = Augment(crop=32, flip=0, colour=0.1)(images, 0, 0, list(range(12)))
    difference = (plain - coloured).abs().mean(dim=(1, 2, 3))
    assert difference.min() > 1e-4
    assert difference.max() < 0.15


def test_a_stream_augments_the_same_on_any_ranks_and_after_a_restart(corpus):
    options: dict[str, Any] = {"crop": 32, "seed": 4, "flip": False, "augment": EVERYTHING}
    alone = list(islice(Stream(corpus, batch_size=8, **options), 7))
    assert alone[0].images.shape == (8, 3, 16, 16)
    for workers in (0, 2):
        parts = []
        for rank in range(2):
            resumed = Stream(
                corpus, batch_size=4, rank=rank, world_size=2, workers=workers, **options
            )
            resumed.load_state_dict(alone[1].state)
            parts.append(list(islice(resumed, 5)))
            resumed.close()
        for whole, *shared in zip(alone[2:], *parts, strict=True):
            assert torch.equal(whole.images, torch.cat([part.images for part in shared]))


def test_a_device_changes_only_where_the_images_are(corpus):
    plain = list(islice(Stream(corpus, batch_size=8, crop=16), 6))
    there = Stream(corpus, batch_size=8, crop=16, device="cpu", workers=1)
    for one, other in zip(plain, there, strict=False):
        assert torch.equal(one.images, other.images)
        assert there.state_dict() == one.state
    there.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_batches(corpus):
    for augment in (None, EVERYTHING):
        options: dict[str, Any] = {"batch_size": 8, "crop": 32, "augment": augment}
        here = Stream(corpus, **options)
        there = Stream(corpus, device="cuda", workers=2, **options)
        for _, one, other in zip(range(12), here, there, strict=False):
            assert other.images.is_cuda
            assert one.keys == other.keys
            assert torch.allclose(one.images.float(), other.images.cpu().float(), atol=1e-3)
            assert there.state_dict() == one.state
        there.close()


def test_numbers_out_of_range_are_refused(corpus):
    for wrong in ({"downscale": 0}, {"downscale": 1.5}, {"flip": 2}, {"colour": 1}):
        with pytest.raises(ShardsError, match=next(iter(wrong))):
            Augment(crop=16, **wrong)
    with pytest.raises(ShardsError, match="cut from 32 pixels, the stream's crop is 31"):
        Stream(corpus, batch_size=1, crop=31, augment=EVERYTHING)
    stream = Stream(corpus, batch_size=1, crop=32, augment=EVERYTHING, epochs=1)
    with pytest.raises(ShardsError, match="DataLoader"):
        next(iter(DataLoader(stream, batch_size=None, num_workers=1)))
