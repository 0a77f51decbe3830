"""One grammar of sizes in bytes: 4GB, 1GiB, 128g, 1T, 100KB, 1.5 MB, 4096.

The units are those of GNU coreutils, Docker and Slurm: `KB`, `MB`, `GB`, ... count by 1000, while
`K`, `M`, `G`, ... and `KiB`, `MiB`, `GiB`, ... count by 1024. Upper and lower case are the same.
"""

from __future__ import annotations

import re
from fractions import Fraction

from pipeline.common.errors import UsageError

LETTERS = "KMGTPE"
SIZE = re.compile(
    rf"(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?:(?P<letter>[{LETTERS}])(?P<kind>I?B)?|B)?"
)
LARGEST = 2**63 - 1


def parse_size(text: str | int, name: str = "size") -> int:
    """Return the bytes that `text` means.

    Args:
        text: such as "256MB" or "1 GiB", or the bytes themselves.
        name: what has this size, for messages: an option, say.

    Raises:
        UsageError: it is no size, below one byte, or beyond 2^63 - 1.
    """
    match = SIZE.fullmatch(str(text).strip().upper())
    if match is None or not str(text).isascii():
        raise UsageError(f"{name} {text!r} is not understood: write it like 256MB, 4GB or 500KiB")
    unit = 1
    if match["letter"]:
        base = 1000 if match["kind"] == "B" else 1024
        unit = base ** (LETTERS.index(match["letter"]) + 1)
    size = int(Fraction(match["number"]) * unit)  # exact, also where a float is not
    if not 1 <= size <= LARGEST:
        raise UsageError(f"{name} {text!r} is too {'small' if size < 1 else 'large'}")
    return size


def in_mebibytes(size: int) -> int:
    """Return how many MiB hold `size` bytes."""
    return -(-size // 2**20)
