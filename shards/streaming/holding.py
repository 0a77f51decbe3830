"""Chooses samples to hold out of a stream, so that models are judged by pictures they never saw.

The samples of all shards are laid end to end and cut into as many parts as there are samples to
hold out. For each part, the shard at its middle gives the last one of its samples that is still
there. So the choice depends on the shards alone, is spread over them, and leaves what is trained on
at the front of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from shards.errors import ShardsError
from shards.reading.corpus import Corpus
from shards.streaming.order import Indices


def trained_sizes(corpora: Sequence[Corpus], held_out: int) -> list[Indices]:
    """Return the number of samples in each shard, of each corpus, that are trained on.

    Raises:
        ShardsError: there are not more samples than are held out.
    """
    sizes = [np.asarray(corpus.sizes, dtype=np.int64).reshape(-1) for corpus in corpora]
    ends = np.cumsum(np.concatenate(sizes))
    total = int(ends[-1]) if len(ends) else 0
    if total <= held_out:
        raise ShardsError(
            f"{held_out} samples can't be held out of {total}: hold fewer out, or shard more"
        )
    middles = (2 * np.arange(held_out, dtype=np.int64) + 1) * total // max(2 * held_out, 1)
    shards = np.searchsorted(ends, middles, side="right")
    taken = np.bincount(shards, minlength=len(ends))
    cuts = np.cumsum([len(one) for one in sizes])[:-1]
    return [one - less for one, less in zip(sizes, np.split(taken, cuts), strict=True)]


def held_out_pictures(corpora: Sequence[Corpus], held_out: int) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the picture's bytes of each sample that is held out. Raises as reading."""
    for corpus, trained in zip(corpora, trained_sizes(corpora, held_out), strict=True):
        for shard, size in enumerate(np.asarray(corpus.sizes).tolist()):
            for index in range(int(trained[shard]), size):
                sample = corpus.sample(shard, index)
                yield sample.key, corpus.read(sample)
