"""A sample on its way into a shard, and the tables that shards and rejects are listed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SIDECAR = pa.schema(
    [
        ("key", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("mode", pa.string()),
        ("orientation", pa.int8()),
        ("label", pa.string()),
        ("origin_sha256", pa.string()),  # of the source's bytes where they did not pass through
    ]
)
REJECTS = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("size", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Ready:
    """A sample whose picture passed: its row of the sidecar, and its members by ending."""

    row: dict[str, Any]
    ending: str
    picture: bytes
    others: dict[str, bytes]


def reject_row(key: str, source: str, reason: str, detail: str, size: int) -> dict[str, Any]:
    """Return a row of the table of rejects."""
    return {"key": key, "source": source, "reason": reason, "detail": detail, "size": size}
