"""Resizing: by Pillow's weights, the same in arrays and tensors, alone and together."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.augment.parameters import FILTERS as NAMES
from shards.augment.resampling import FILTERS, Scaling, resized, resized_together

SIDES = st.integers(1, 150)


@st.composite
def jobs(draw):
    """Return a picture, and the resize of a square of it."""
    height, width, tall, wide = (draw(SIDES) for _ in range(4))
    seed = draw(st.integers(0, 1000))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = draw(st.integers(1, min(tall, wide)))
    top, left = draw(st.integers(0, tall - side)), draw(st.integers(0, wide - side))
    whole = Scaling.whole((height, width), (tall, wide), draw(st.sampled_from(NAMES)))
    return pixels, whole, whole.cut(top, left, side)


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


@settings(max_examples=60, deadline=None)
@given(st.lists(jobs(), min_size=1, max_size=4))
def test_tensors_of_any_sizes_together_give_the_arrays_bits(given_jobs):
    pixels = [one for one, _, _ in given_jobs for _ in range(2)]
    scalings = [one for _, *both in given_jobs for one in both]
    together = resized_together([tensor(one) for one in pixels], scalings)
    for source, scaling, found in zip(pixels, scalings, together, strict=True):
        expected = resized(source, scaling)
        assert expected.shape == (*scaling.region[2:], 3)
        assert np.array_equal(found[0].permute(1, 2, 0).numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(jobs())
def test_a_whole_picture_is_pillows_and_a_square_is_cut_from_it(job):
    pixels, whole, cut = job
    expected = resized(pixels, whole)
    by_pillow = Image.fromarray(pixels).resize(whole.after[::-1], FILTERS[whole.filter][0])
    if whole.filter in ("bilinear", "area"):  # others pass black and white, and are cut off there
        # Versions of Pillow differ in which axis comes first.
        assert np.abs(expected.astype(int) - np.asarray(by_pillow)).max() <= 1
    top, left, tall, wide = cut.region
    part = expected[top : top + tall, left : left + wide]
    if whole.filter != "area":  # whose weights leap where a sample just begins to count
        assert np.abs(part.astype(int) - resized(pixels, cut)).max() <= 3
