"""Unpacks the side data of a stream within limits."""

from __future__ import annotations

import zlib

from pipeline.codec.errors import CodecError

LARGEST_PROFILE = 2**24  # bytes


def unpack_profile(packed: bytes) -> bytes:
    """Return the ICC profile that a stream holds; raises `CodecError` for a damaged one."""
    return inflate(packed, LARGEST_PROFILE, "colour profile")


def inflate(packed: bytes, limit: int, what: str) -> bytes:
    """Decompress zlib data of at most `limit` bytes; a `CodecError` calls them `what`."""
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(packed, limit)
    except zlib.error as error:
        raise CodecError(f"the file is damaged: its {what} can't be unpacked") from error
    if not engine.eof and engine.decompress(engine.unconsumed_tail, 1):
        raise CodecError(f"the file is damaged: its {what} is too long")
    return raw
