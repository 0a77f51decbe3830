"""Corpus to WebDataset tars to batches."""

from shards.errors import ShardsError, ShardsRuntimeError
from shards.manifest import Manifest, ShardInfo

__all__ = ["Manifest", "ShardInfo", "ShardsError", "ShardsRuntimeError"]
