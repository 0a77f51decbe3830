"""Where pictures come from: what a user names on the command line, as sources to list and read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shards.errors import ShardsError
from shards.sources.base import Entry, Listed, Reader, Rows, Sample, Source, UnreadableError
from shards.sources.folder import FolderSource

__all__ = [
    "Entry",
    "Listed",
    "Reader",
    "Rows",
    "Sample",
    "Source",
    "UnreadableError",
    "open_sources",
]

KINDS = "a folder of pictures"


def open_sources(specs: Sequence[str]) -> list[Source]:
    """Return the sources that `specs` name.

    Raises:
        ShardsError: one is not there, or is nothing that pictures are read from.
    """
    if not specs:
        raise ShardsError(f"no source given: name {KINDS}")
    return [source for spec in specs for source in _open(spec)]


def _open(spec: str) -> list[Source]:
    path = Path(spec)
    if not path.exists():
        raise ShardsError(f"source {spec} is not there: name {KINDS}")
    if path.is_dir():
        return [FolderSource(str(path))]
    raise ShardsError(f"source {spec} is no kind that is known: name {KINDS}")
