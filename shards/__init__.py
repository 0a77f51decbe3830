"""Corpus to WebDataset tars to batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shards.errors import ShardsError, ShardsRuntimeError
from shards.manifest import Manifest, ShardInfo

if TYPE_CHECKING:
    from shards.reading.cache import Cache
    from shards.reading.opening import open_corpus
    from shards.streaming.augment import Augment
    from shards.streaming.order import SampleOrder
    from shards.streaming.source import Batch
    from shards.streaming.stream import Stream, stream
    from shards.streaming.whole_pictures import pictures

__all__ = [
    "Augment",
    "Batch",
    "Cache",
    "Manifest",
    "SampleOrder",
    "ShardInfo",
    "ShardsError",
    "ShardsRuntimeError",
    "Stream",
    "open_corpus",
    "pictures",
    "stream",
]

# Names that need torch, or numpy: imported when asked for, so that making shards does not wait.
_LATER = {
    "Augment": "shards.streaming.augment",
    "Batch": "shards.streaming.source",
    "Cache": "shards.reading.cache",
    "SampleOrder": "shards.streaming.order",
    "Stream": "shards.streaming.stream",
    "open_corpus": "shards.reading.opening",
    "pictures": "shards.streaming.whole_pictures",
    "stream": "shards.streaming.stream",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'shards' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)
