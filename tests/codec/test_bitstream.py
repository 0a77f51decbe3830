"""The container: what is written is read, and everything else is refused by name."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import CodecError
from pipeline.codec.bitstream import Header, read_header, read_stream, write_stream

HEADERS = st.builds(
    Header,
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    fingerprint=st.just("0123456789abcdef"),
    tile=st.sampled_from([0, 1024]),
    rate=st.sampled_from([None, 0.5, 3.0]),
    grey=st.booleans(),
    alpha=st.booleans(),
    profile=st.booleans(),
    deep=st.booleans(),
)


def _stream(header: Header) -> bytes:
    tiles = [np.arange(i % 5, dtype=np.uint32) for i in range(len(header.tiles()))]
    return write_stream(header, {"alpha": b"alpha", "profile": b""}, tiles, 77)


@given(HEADERS)
@settings(deadline=None)
def test_round_trip(header: Header) -> None:
    data = _stream(header)
    stream = read_stream(data)
    assert stream.header == read_header(data) == header
    assert stream.complete
    assert stream.symbol_check == 77
    assert [len(words) for words in stream.tiles] == [i % 5 for i in range(len(header.tiles()))]
    assert stream.side == {
        name: value
        for name, value in (("profile", b""), ("alpha", b"alpha"))
        if getattr(header, name)
    }


@given(HEADERS)
@settings(deadline=None)
def test_tiles_cover_the_picture_once(header: Header) -> None:
    covered = np.zeros((header.height, header.width), np.uint8)
    for top, left, height, width in header.tiles():
        covered[top : top + height, left : left + width] += 1
    assert (covered == 1).all()


@given(HEADERS, st.data())
@settings(deadline=None)
def test_every_cut_is_noticed(header: Header, data: st.DataObject) -> None:
    whole = _stream(header)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(CodecError):
        read_stream(cut)


@given(HEADERS, st.data())
@settings(deadline=None)
def test_every_flipped_bit_is_noticed(header: Header, data: st.DataObject) -> None:
    damaged = bytearray(_stream(header))
    # The last four bytes are the symbols' check, which only decoding can compare.
    at = data.draw(st.integers(0, 8 * (len(damaged) - 4) - 1))
    damaged[at // 8] ^= 1 << at % 8
    with pytest.raises(CodecError):
        read_stream(bytes(damaged))


def test_limits_are_checked_before_anything_else() -> None:
    header = Header(2**19, 2**19, "0123456789abcdef")
    data = write_stream(header, {}, [np.zeros(1, np.uint32)], 0)
    with pytest.raises(CodecError, match="more than the limit"):
        read_stream(data)
    assert read_stream(data, max_pixels=2**38).header == header


def test_other_versions_and_flags_are_refused() -> None:
    data = _stream(Header(3, 4, "0123456789abcdef"))
    with pytest.raises(CodecError, match="version 9"):
        read_header(data[:4] + b"\x09" + data[5:])
    end = len(data) - 4 * 2 - 1 - 4
    start = bytearray(data[:end])
    start[5] = 0x80
    with pytest.raises(CodecError, match="no sense"):
        read_header(bytes(start) + struct.pack("<I", zlib.crc32(bytes(start))) + data[end + 4 :])


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(CodecError, match="after its end"):
        read_stream(_stream(Header(3, 4, "0123456789abcdef")) + b"\0")
