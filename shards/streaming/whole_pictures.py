"""Reads whole pictures of a split in the stored order, for validation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from shards.errors import ShardsRuntimeError
from shards.reading.cache import Cache
from shards.reading.corpus import Corpus
from shards.reading.decode import BrokenPictureError, Pixels, decode
from shards.reading.opening import open_corpus


def pictures(
    dest: str | Path, split: str = "val", cache: Cache | None = None
) -> Iterator[tuple[str, Pixels]]:
    """Yield key and whole picture, uint8 (H, W, 3) RGB, of every sample in the stored order.

    Raises:
        ShardsError: no such split.
        ShardsRuntimeError: a picture can't be read or decoded.
    """
    corpus = open_corpus(dest, split, cache)
    return _pictures(corpus)


def _pictures(corpus: Corpus) -> Iterator[tuple[str, Pixels]]:
    try:
        for shard, size in enumerate(corpus.sizes):
            for index in range(size):
                sample = corpus.sample(shard, index)
                try:
                    yield sample.key, decode(corpus.read(sample))
                except BrokenPictureError as error:
                    raise ShardsRuntimeError(
                        f"{sample.key} in {sample.shard} of {corpus.name} is broken ({error}): "
                        "run `pipeline verify`"
                    ) from error
    finally:
        corpus.close()
