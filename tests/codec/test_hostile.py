"""Mutated streams: one clear error or a picture, never a crash, a hang or a flood of memory.

The nightly form: `python -m tests.codec.test_hostile 100000`.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.codec import CCAConfig, CCAModel, CodecError, MismatchError
from pipeline.codec.bitstream import Header, read_stream
from pipeline.codec.coding import decode_stream
from pipeline.codec.picture import Canvas
from tests.codec.conftest import make_model

# As small as a model gets: thousands of decodings must take seconds.
CONFIG = CCAConfig(
    latent_channels=4,
    slices=2,
    slice_exponent=1.0,
    transform_channels=(2, 2, 4),
    transform_blocks=(0, 0, 1),
    context_channels=2,
    context_blocks=1,
    hyper_latent_channels=2,
    head_channels=(2, 2),
)
MAX_PIXELS = 64 * 64 * 4
MAX_MEMORY = MAX_PIXELS * 1024


@cache
def _model() -> CCAModel:
    return make_model(CONFIG)


@cache
def _seeds() -> tuple[bytes, ...]:
    from pipeline.codec.coding import TensorSource, compress

    generator = torch.Generator().manual_seed(0)
    rich = Header(1, 1, "", grey=True, alpha=True, profile=True, deep=True, rate=1.5)
    side = {"alpha": zlib.compress(bytes(30 * 40)), "profile": zlib.compress(b"profile")}
    pictures = [torch.rand(1, 3, *size, generator=generator) for size in ((1, 1), (30, 40))]
    return (
        _model().compress(pictures[0]),
        _model().compress(pictures[1]),
        compress(_model(), TensorSource(pictures[1]), rich, side),
    )


def _try(data: bytes) -> bool:
    """Decode `data`, whole and as a preview; return whether any picture came out."""
    shown = False
    for partial in (False, True):
        try:
            stream = read_stream(data, MAX_PIXELS, partial)
            canvas = Canvas(stream.header, deep=True)
            decode_stream(_model(), stream, canvas.paint, MAX_MEMORY)
            canvas.image(stream.side)
            shown = True
        except (CodecError, MismatchError) as error:
            sentence = str(error)
            assert sentence
            assert "\n" not in sentence
    return shown


def _repair(data: bytearray, length: int) -> bytes:
    """Make the checksums fit again, as someone who means harm would."""
    if len(data) > length + 12:
        data[length : length + 4] = struct.pack("<I", zlib.crc32(data[:length]))
        data[-8:-4] = struct.pack("<I", zlib.crc32(data[length + 4 : -8]))
    return bytes(data)


EDIT = st.tuples(st.integers(0, 10_000), st.sampled_from("fidx"), st.integers(0, 255))


def _mutate(data: bytes, edits: list[tuple[int, str, int]], repair: bool) -> bytes:
    mutated = bytearray(data)
    for place, kind, value in edits:
        at = place % max(1, len(mutated))
        if kind == "f" and mutated:
            mutated[at] ^= 1 << value % 8
        elif kind == "x" and mutated:
            mutated[at] = value
        elif kind == "i":
            mutated[at:at] = bytes([value]) * (1 + value % 5)
        else:
            del mutated[at : at + 1 + value % 9]
    # The header of these small pictures, magic to tile size (to rate), without its checksum.
    length = 21 if data[5] & 16 else 17
    return _repair(mutated, length) if repair else bytes(mutated)


def _attack(which: int, edits: list[tuple[int, str, int]], repair: bool, cut: int) -> None:
    data = _mutate(_seeds()[which], edits, repair)
    _try(data[: len(data) * (cut + 1) // 100] if cut % 3 == 0 else data)


def _attacks(count: int) -> Callable[[], None]:
    """Return a search through `count` mutations."""
    edits = st.lists(EDIT, min_size=1, max_size=6)
    search = given(st.integers(0, 2), edits, st.booleans(), st.integers(0, 99))(_attack)
    quiet = list(HealthCheck)
    return settings(max_examples=count, deadline=None, database=None, suppress_health_check=quiet)(
        search
    )


@pytest.mark.slow
def test_mutated_streams() -> None:
    _attacks(500)()


def test_the_seeds_themselves_decode() -> None:
    assert all(_try(seed) for seed in _seeds())


def test_bombs_are_refused_before_memory_is_taken() -> None:
    from pipeline.codec.bitstream import write_stream

    name = _model().fingerprint[:16]
    words = [np.zeros(1, np.uint32)]
    assert not _try(write_stream(Header(2**20, 2**20, name), {}, words, 0))
    bomb = Header(64, 64, name, alpha=True)
    side = {"alpha": zlib.compress(bytes(10**7))}
    assert not _try(write_stream(bomb, side, words, 0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    _attacks(int(sys.argv[1]))()
