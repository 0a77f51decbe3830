"""The segments of a JPEG."""

from __future__ import annotations

SIGNATURE = b"\xff\xd8\xff"
SCAN = 0xDA
# What applications wrote about the picture (EXIF, XMP, ICC, ...), but for the two segments that
# say how its colours are stored: JFIF's and Adobe's.
METADATA = frozenset(range(0xE1, 0xF0)) - {0xEE}


def without_metadata(data: bytes) -> bytes:
    """Return the JPEG `data` without its metadata; what cannot be followed stays as it is."""
    kept, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != SCAN:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] not in METADATA:
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])
