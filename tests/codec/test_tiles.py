"""Large pictures in tiles: bounded memory, whole coverage, no seams; previews of cut files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import CCAConfig, CodecError
from pipeline.codec.bitstream import read_stream, write_stream
from pipeline.codec.coding import TensorSource, compress, decode_stream, decompress, tile_size
from pipeline.codec.layers import NAFBlock
from tests.codec.conftest import SMALL, make_model

MODEL = make_model(SMALL)
# With this much memory the small model takes tiles of 256 pixels.
LITTLE = 45 * 2**20


def _smooth(height: int, width: int) -> torch.Tensor:
    rows, columns = torch.arange(float(height)).view(-1, 1), torch.arange(float(width))
    waves = [0.5 + 0.4 * torch.sin(rows / (20 + c)) * torch.cos(columns / 31) for c in range(3)]
    return torch.stack(waves)[None]


def _tiled(x: torch.Tensor) -> bytes:
    return compress(MODEL, TensorSource(x), max_memory=LITTLE)


@pytest.mark.parametrize(("height", "width"), [(530, 557), (300, 1100), (513, 576)])
def test_tiles_decode_to_every_pixel(height: int, width: int) -> None:
    x = _smooth(height, width)
    data = _tiled(x)
    header = read_stream(data).header
    assert header.tile == 256
    found = decompress(MODEL, data)
    assert found.shape == x.shape
    assert found.isfinite().all()


def test_little_memory_makes_small_tiles_and_too_little_is_refused() -> None:
    sides = [tile_size(SMALL, 9000, 9000, 2**k) for k in (27, 28, 29)]
    assert sides == sorted(sides)
    assert all(side % 64 == 0 and side > 0 for side in sides)
    assert tile_size(SMALL, 64, 64, 2**30) == 0
    with pytest.raises(CodecError, match="too little"):
        tile_size(SMALL, 9000, 9000, 2**20)


def test_decoding_within_less_memory_than_the_tiles_take_is_refused() -> None:
    data = _tiled(_smooth(530, 557))
    with pytest.raises(CodecError, match="max-memory"):
        decompress(MODEL, data, max_memory=2**20)


class _Watched(TensorSource):
    """Keeps which columns it was asked for."""

    def __init__(self, x: torch.Tensor) -> None:
        super().__init__(x)
        self.asked: list[slice] = []

    def region(self, rows: slice, columns: slice) -> torch.Tensor:
        self.asked.append(columns)
        return super().region(rows, columns)


BLOCKS = st.tuples(*[st.integers(0, 9)] * 3)


@given(BLOCKS)
@settings(max_examples=8, deadline=None)
def test_transforms_depend_on_no_pixel_beyond_their_reach(blocks: tuple[int, int, int]) -> None:
    """By the gradient of one latent, and of one pixel, without the means over all positions."""
    config = replace(SMALL, transform_channels=(2, 2, 2), transform_blocks=blocks)
    model = make_model(config).double()
    for block in model.modules():
        if isinstance(block, NAFBlock):
            torch.nn.init.zeros_(block.attend.weight)
    reach, stride = config.reach, config.latent_stride
    middle = -(-reach // stride) + 1
    x = torch.rand(1, 3, 64, (2 * middle + 1) * stride, dtype=torch.float64, requires_grad=True)
    model.analysis(x)[:, :, :, middle].sum().backward()
    seen = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert middle * stride - seen.min() <= reach
    assert seen.max() + 1 - (middle + 1) * stride <= reach
    y = torch.rand(1, 12, 4, 2 * middle + 1, dtype=torch.float64, requires_grad=True)
    pixels = slice(middle * stride, (middle + 1) * stride)
    model.synthesis(y)[:, :, :, pixels].sum().backward()
    seen = y.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert (middle - seen.min()) * stride <= reach
    assert (seen.max() - middle) * stride <= reach


@pytest.mark.parametrize("blocks", [(0, 1, 1), (4, 4, 4), (9, 9, 9)])
def test_tiles_are_given_what_their_transforms_reach(blocks: tuple[int, int, int]) -> None:
    """The margin was 128 pixels whatever the model: at nine blocks a resolution 208 are needed."""
    config = replace(SMALL, transform_blocks=blocks)
    assert config.margin >= config.reach
    least = 256 + 2 * config.margin
    source = _Watched(_smooth(540, 1100))
    compress(make_model(config), source, max_memory=least**2 * config.bytes_per_pixel)
    # The first tile's, whose 256 columns begin at the picture's edge.
    assert source.asked[0] == slice(0, 256 + config.margin)


def test_the_published_margin_is_that_of_older_files() -> None:
    assert CCAConfig().reach == CCAConfig().margin == 128
    assert CCAConfig.tiny().margin == 128


def test_borders_show_no_more_than_what_is_between_them() -> None:
    """Steps across the tiles' borders against steps elsewhere, in what tiling changed."""
    x = _smooth(520, 1030)
    whole = decompress(MODEL, compress(MODEL, TensorSource(x)))
    difference = (decompress(MODEL, _tiled(x)) - whole)[0].double().numpy()
    steps = np.abs(np.diff(difference, axis=2)).mean((0, 1))
    borders = steps[[255, 511, 767, 1023]]
    assert borders.max() < 3 * steps.mean() + 1e-3


def test_a_cut_file_gives_the_slices_that_arrived() -> None:
    x = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    data = MODEL.compress(x)
    whole = MODEL.decompress(data)
    errors = []
    for share in (0.0, 0.2, 0.5, 0.8, 0.999):
        stream = read_stream(data[: 30 + int(share * (len(data) - 30))], partial=True)
        assert not stream.complete
        blocks: list[torch.Tensor] = []
        keep = blocks.append
        decode_stream(MODEL, stream, lambda _, block, keep=keep: keep(block))  # type: ignore[misc]
        found = torch.cat(blocks, dim=1)[None]
        assert found.shape == x.shape
        errors.append(float((found - whole).square().mean()))
    assert errors[-1] < errors[0]
    assert errors == sorted(errors, reverse=True)


def test_a_file_cut_behind_its_last_tile_is_as_good_as_whole() -> None:
    data = MODEL.compress(torch.rand(1, 3, 64, 64))
    stream = read_stream(data[:-3], partial=True)
    blocks: list[torch.Tensor] = []
    decode_stream(MODEL, stream, lambda _, block: blocks.append(block))
    assert torch.equal(torch.cat(blocks, dim=1)[None], MODEL.decompress(data))


def test_missing_tiles_of_a_cut_file_are_filled() -> None:
    data = _tiled(_smooth(530, 557))
    stream = read_stream(data[: len(data) // 3], partial=True)
    assert len(stream.tiles) < len(stream.header.tiles())
    blocks: list[torch.Tensor] = []
    decode_stream(MODEL, stream, lambda _, block: blocks.append(block))
    assert torch.cat(blocks, dim=1).shape == (3, 530, 557)


def test_damage_is_no_cut() -> None:
    stream = read_stream(MODEL.compress(torch.rand(1, 3, 64, 64)))
    data = bytearray(write_stream(stream.header, {}, stream.tiles, 0))
    data[40] ^= 1
    with pytest.raises(CodecError, match="damaged"):
        read_stream(bytes(data), partial=True)
