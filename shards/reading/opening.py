"""Opens corpora by what a user names: a shard folder, tars of others, or several with weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shards.errors import ShardsError
from shards.manifest import Manifest
from shards.reading.cache import Cache
from shards.reading.corpus import Corpus, FileCorpus, OurTables
from shards.reading.files import LocalFiles
from shards.reading.foreign import is_pattern, open_tars
from shards.reading.remote import open_remote
from shards.store import Store

Dest = str | Path | Mapping[str, float]


def open_corpora(
    dest: Dest, split: str, cache: Cache | None, block: int
) -> tuple[list[Corpus], list[float]]:
    """Open all corpora of `dest`, and return them with their weights.

    Raises:
        ShardsError: one is not there, or weights are not positive.
    """
    weights = dest if isinstance(dest, Mapping) else {str(dest): 1.0}
    if not weights or not all(weight > 0 for weight in weights.values()):
        raise ShardsError(f"corpora are mixed by positive weights, these are {dict(weights)}")
    corpora = [open_corpus(one, split, cache, block) for one in weights]
    return corpora, [float(weight) for weight in weights.values()]


def open_corpus(
    dest: str | Path, split: str = "train", cache: Cache | None = None, block: int = 8
) -> Corpus:
    """Open `split` of a folder or URL that `pipeline shard` wrote, or a pattern of tars.

    Raises:
        ShardsError: there is no such split or tar, or the cache can't hold a block of shards.
    """
    cache = cache or Cache()
    if is_pattern(dest):
        return open_tars(dest, cache, block)
    store = Store(dest)
    if store.folder is None:
        return open_remote(store.url, split, cache, block)
    files = LocalFiles(store.folder)
    return FileCorpus(str(dest), Manifest.read(dest, split), files, OurTables(files), block)
