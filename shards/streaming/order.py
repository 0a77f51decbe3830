"""The first order of training: which sample is at a position of an epoch, by arithmetic alone.

Runs that were begun in it go on in it; new ones take that of `shards.streaming.groups`.

Legend: N samples in the corpus, S shards, K shards to a block, e an epoch, p a position in [0, N).

    epoch e:   shards permuted by (seed, e)            3 0 4 | 1 5 2      blocks of K = 3 shards
               samples of a block permuted together    p = 0 ... | ... N - 1

Nothing is drawn from a generator: every permutation sorts hashes of (seed, epoch, ...), so the
order is the same on every machine, for every version of every library, and any position is found
at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.common.addresses import hash_words, permutation
from shards.errors import ShardsError
from shards.purposes import SAMPLES, SHARDS
from shards.reading.index import Span

Indices = npt.NDArray[np.int64]

# Blocks whose permutation is remembered: the one being read and the next.
REMEMBERED = 4


@dataclass(frozen=True)
class Reading:
    """What a group reads between two positions, both counted from the beginning of epoch 0.

    Attributes:
        begin: the position from which on it is read.
        end: the position from which on it is no longer.
        spans: the samples.
        after: epoch and number of the window that the group reads next.
    """

    begin: int
    end: int
    spans: list[Span]
    after: tuple[int, int]


class SampleOrder:
    """The sample at each position of each epoch of one corpus.

    Each epoch is a permutation: every sample once. Finding a position costs one permutation of the
    shards and one of the samples of a block, wherever in the epoch it lies.
    """

    number = 1
    groups = 1

    def __init__(self, sizes: Sequence[int] | Indices, seed: int = 0, block: int = 8) -> None:
        """Take the number of samples in each shard; `block` shards are shuffled together.

        Raises:
            ShardsError: `block` is below 1, or a shard has a negative number of samples.
        """
        if block < 1:
            raise ShardsError(f"block is {block}: give the number of shards to shuffle together")
        self.sizes = np.asarray(sizes, dtype=np.int64).reshape(-1)
        if (self.sizes < 0).any():
            raise ShardsError("a shard has a negative number of samples: make the shards again")
        self.seed = seed
        self.block = block
        self._total = int(self.sizes.sum())
        self._epoch: tuple[int, Indices, Indices] | None = None
        self._blocks: dict[tuple[int, int], tuple[Indices, Indices]] = {}

    def __len__(self) -> int:
        return self._total

    def __call__(self, epoch: int, position: int) -> tuple[int, int]:
        """Return (shard, index in the shard) of the sample at `position` in [0, N) of `epoch`."""
        if not 0 <= position < self._total:
            raise IndexError(f"position {position} is not in [0, {self._total})")
        _, starts = self._shards(epoch)
        number = int(np.searchsorted(starts, position, side="right")) - 1
        shards, indices = self._block(epoch, number)
        within = position - int(starts[number])
        return int(shards[within]), int(indices[within])

    def at(self, epoch: int, positions: Indices) -> tuple[Indices, Indices]:
        """Return the shard, and the index in it, of each of `positions`, int64 (n,) each."""
        found = [self(epoch, int(position)) for position in positions]
        shards, indices = np.asarray(found, dtype=np.int64).reshape(-1, 2).T
        return shards, indices

    def group(self, epoch: int, positions: Indices) -> Indices:
        """Return zeros (n,): there are no groups, every rank reads all shards."""
        return np.zeros_like(positions)

    def number_of(self, epoch: int, position: int, group: int) -> int:
        """Return the number of the block around a position."""
        _, starts = self._shards(epoch)
        return int(np.searchsorted(starts, position, side="right")) - 1

    def reading(self, epoch: int, group: int, number: int) -> Reading:
        """Return what is read in a block."""
        shards, starts = self._shards(epoch)
        own = shards[number * self.block : (number + 1) * self.block]
        spans = [Span(int(one), 0, int(self.sizes[one])) for one in own]
        begin = epoch * self._total + int(starts[number])
        after = (epoch, number + 1) if number + 1 < len(starts) else (epoch + 1, 0)
        return Reading(begin, begin + sum(one.end for one in spans), spans, after)

    def groups_of(self, rank: int, world_size: int) -> range:
        """Return the one group there is: every rank reads all shards."""
        return range(1)

    def block_shards(self, epoch: int, position: int, ahead: int = 0) -> list[int]:
        """Return the shards of the block around `position`, or of the block `ahead` places on.

        There is none past the end of the epoch.
        """
        shards, starts = self._shards(epoch)
        number = int(np.searchsorted(starts, position, side="right")) - 1 + ahead
        return [int(one) for one in shards[number * self.block : (number + 1) * self.block]]

    def _shards(self, epoch: int) -> tuple[Indices, Indices]:
        """Return the shards in the order of `epoch`, and the position where each block starts."""
        if self._epoch is None or self._epoch[0] != epoch:
            shards = permutation(hash_words(self.seed, epoch, SHARDS), len(self.sizes))
            ends = np.cumsum(self.sizes[shards])
            starts = np.concatenate([[0], ends[self.block - 1 : -1 : self.block]])
            self._epoch = (epoch, shards, starts)
        return self._epoch[1], self._epoch[2]

    def _block(self, epoch: int, number: int) -> tuple[Indices, Indices]:
        """Return the shard and the index of every sample of a block, in the order of `epoch`."""
        known = self._blocks.get((epoch, number))
        if known is not None:
            return known
        shards = self._shards(epoch)[0][number * self.block : (number + 1) * self.block]
        sizes = self.sizes[shards]
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        order = permutation(hash_words(self.seed, epoch, SAMPLES, number), int(sizes.sum()))
        made = (np.repeat(shards, sizes)[order], (np.arange(len(first)) - first)[order])
        while len(self._blocks) >= REMEMBERED:
            del self._blocks[next(iter(self._blocks))]
        self._blocks[epoch, number] = made
        return made
