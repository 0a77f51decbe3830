"""The mark in PNGs that decoding writes: what a PNG was made of, and that nobody changed it since.

The mark is a private chunk `ccAP` before the last chunk. By PNG's rules, its name tells an editor
that does not know it to leave it out when the pixels change. It holds a version, a digest of what
the picture was made of (32 bytes), and the SHA-256 of the file before the chunk. So decoding can
tell its own pictures from those that it must not replace, and whether it would write one again.

Source: PNG (Third Edition), 5.4 "Chunk naming conventions".
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

NAME = b"ccAP"
VERSION = b"\x01"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
_CONTENT = len(VERSION) + 32 + 32
_LENGTH = 12 + _CONTENT


def made_of(stream: bytes, deep: bool, preview: bool) -> bytes:
    """Return 32 bytes that identify what a picture is made of: the stream and the options."""
    return hashlib.sha256(bytes([deep, preview]) + hashlib.sha256(stream).digest()).digest()


def with_mark(png: bytes, made: bytes) -> bytes:
    """Return the file `png` with a mark that holds `made`, 32 bytes from `made_of`."""
    if not png.endswith(_END) or len(made) != 32:
        raise ValueError("`png` does not end as a PNG does, or `made` is not 32 bytes long")
    body = png[: -len(_END)]
    content = NAME + VERSION + made + hashlib.sha256(body).digest()
    chunk = struct.pack(">I", _CONTENT) + content + struct.pack(">I", zlib.crc32(content))
    return body + chunk + _END


def mark_of(file: Path) -> bytes | None:
    """Return the 32 bytes in `file`'s mark; None without a mark, or if `file` was changed."""
    try:
        if file.stat().st_size < len(_SIGNATURE) + _LENGTH + len(_END):
            return None
        with file.open("rb") as opened:
            start = opened.seek(-_LENGTH - len(_END), 2)
            tail = opened.read()
            content = tail[8 : 4 + len(NAME) + _CONTENT]
            if tail[4:8] != NAME or content[:1] != VERSION or not tail.endswith(_END):
                return None
            opened.seek(0)
            body = opened.read(start)
    except OSError:
        return None
    return content[1:33] if hashlib.sha256(body).digest() == content[33:65] else None
