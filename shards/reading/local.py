"""Bytes at an offset of a shard on this machine's disk."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

# Descriptors kept open; a block of shards is read in random order.
KEPT_OPEN = 64


class LocalReader:
    """Reads parts of files of one folder, keeping the last files open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        # Descriptors don't travel to another process.
        return {"folder": self.folder, "_open": OrderedDict()}

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes at `offset` of file `name`: fewer where the file ends."""
        return os.pread(self._descriptor(name), size, offset)

    def close(self) -> None:
        """Close all files; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, name: str) -> int:
        known = self._open.get(name)
        if known is not None:
            self._open.move_to_end(name)
            return known
        while len(self._open) >= KEPT_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[name] = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[name]
