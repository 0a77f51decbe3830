"""Corpus to WebDataset tars to batches."""

from shards.errors import ShardsError, ShardsFailure
from shards.manifest import Manifest, ShardInfo

__all__ = ["Manifest", "ShardInfo", "ShardsError", "ShardsFailure"]
