"""Digests of files and of values, in hexadecimal digits."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def file_sha256(file: Path | int) -> str:
    """Return the SHA-256 of a file: of its path, or of an open descriptor, which stays open."""
    if isinstance(file, int):
        with os.fdopen(os.dup(file), "rb") as stream:
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of `value` as compact ASCII JSON with sorted keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
