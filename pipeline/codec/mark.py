"""A mark in the PNGs that decoding writes: what it was made of, and that nobody changed it since.

A private chunk `ccAP` stands before the last one. Its name says by PNG's rules that an editor which
does not know it must leave it out once the pixels change. It holds a version, what the picture was
made of (32 bytes), and the SHA-256 of the file before the chunk. So decoding knows a picture of its
own from one that it must not replace, and knows whether that is what it would write again.

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
    """Return 32 bytes that tell what a picture is made of: the stream, and the options."""
    return hashlib.sha256(bytes([deep, preview]) + hashlib.sha256(stream).digest()).digest()


def with_mark(png: bytes, made: bytes) -> bytes:
    """Return the file `png` with a mark that says `made`, 32 bytes."""
    if not png.endswith(_END) or len(made) != 32:
        raise ValueError("no PNG that ends as one should, or no 32 bytes to say of it")
    body = png[: -len(_END)]
    content = NAME + VERSION + made + hashlib.sha256(body).digest()
    chunk = struct.pack(">I", _CONTENT) + content + struct.pack(">I", zlib.crc32(content))
    return body + chunk + _END


def mark_of(file: Path) -> bytes | None:
    """Return what the mark in `file` says; None where there is none, or the file was changed."""
    try:
        if file.stat().st_size < len(_SIGNATURE) + _LENGTH + len(_END):
            return None
        with file.open("rb") as opened:
            start = opened.seek(-_LENGTH - len(_END), 2)
            tail = opened.read()
            said = tail[8 : 4 + len(NAME) + _CONTENT]
            if tail[4:8] != NAME or said[:1] != VERSION or not tail.endswith(_END):
                return None
            opened.seek(0)
            body = opened.read(start)
    except OSError:
        return None
    return said[1:33] if hashlib.sha256(body).digest() == said[33:65] else None
