"""Reads the header of a JPEG that holds nothing unusual, in a fraction of Pillow's time."""

from __future__ import annotations

# Markers of segments that have no part in size, mode or orientation.
HUFFMAN, RESTARTS, COMMENT, TABLES = 0xC4, 0xDD, 0xFE, 0xDB
PLAIN = frozenset({HUFFMAN, RESTARTS, COMMENT})
FRAMES, SCAN = frozenset({0xC0, 0xC1, 0xC2}), 0xDA
MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # by the number of components
TABLE_BYTES = 65  # of a quantisation table of 8 bits
# Segments of applications, by marker: how they start, and the bytes that Pillow looks at.
KNOWN = {0xE0: (b"JFIF\0", 14), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 12)}


def jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """Return width, height and Pillow's mode of the JPEG `data`, which is upright.

    None: it is no JPEG, is damaged, or has a segment that may turn it (EXIF, XMP) or that only
    Pillow understands.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    found, place = None, 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        end = place + 2 + size
        if size < 2 or end > len(data):
            return None
        if marker == SCAN:
            return found
        if marker in FRAMES and found is None:
            found = _frame(data[place + 4 : end])
            if found is None:
                return None
        elif not _is_plain(marker, data[place + 4 : end]):
            return None
        place = end
    return None


def _frame(segment: bytes) -> tuple[int, int, str] | None:
    """Return width, height and mode from the frame's header, if it is one of 8 bits."""
    if len(segment) < 6 or segment[0] != 8 or len(segment) != 6 + 3 * segment[5]:
        return None
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    mode = MODES.get(segment[5])
    return (width, height, mode) if mode and width and height else None


def _is_plain(marker: int, segment: bytes) -> bool:
    """Return whether Pillow would accept this segment, and learn nothing from it."""
    if marker == TABLES:
        return not len(segment) % TABLE_BYTES and max(segment[::TABLE_BYTES], default=0) < 16
    if marker in KNOWN:
        name, size = KNOWN[marker]
        return segment.startswith(name) and len(segment) >= size
    return marker in PLAIN
