"""Mixes several corpora in one order: finds the corpus and its sample at each position.

Legend: N_c samples in corpus c, an epoch of the mixture has N = sum of N_c positions, e an epoch,
p a position, g = e N + p counted from the beginning.

The positions g come in periods of 1,024. In each, corpus c has exactly s_c places, s_c / 1,024
being its weight; which ones, a permutation by (seed, period) says. The k-th place of corpus c,
counted from the beginning, has sample k mod N_c of its own epoch k // N_c: a corpus is walked
through completely before a sample of it comes again, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.common.addresses import hash_words, permutation
from shards.errors import ShardsError
from shards.purposes import MIXTURE
from shards.streaming.groups import GROUPS, GroupedOrder
from shards.streaming.order import Indices, SampleOrder

PERIOD = 1024

# The number of the order for new runs, and those of all known orders.
ORDER = 2
ORDERS = (1, 2)

# Periods whose places are remembered: those of a global batch.
REMEMBERED = 64


class MixedOrder:
    """The corpus and the sample at each position of each epoch of a mixture.

    With one corpus it is that corpus's own order.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[int] | Indices],
        weights: Sequence[float],
        seed: int = 0,
        block: int = 8,
        *,
        number: int = ORDER,
        groups: int = GROUPS,
    ) -> None:
        """Take the shards' sizes and the weight of each corpus, and the number of their order.

        Raises:
            ShardsError: a corpus has no samples, a weight is below 1/2048 of all, or there is no
                order of this number.
        """
        if number not in ORDERS:
            raise ShardsError(
                f"order {number} is not known here, only {ORDERS}: install a newer version"
            )
        seeds = [hash_words(seed, corpus) if corpus else seed for corpus in range(len(sizes))]
        self.orders: list[SampleOrder | GroupedOrder] = [
            GroupedOrder(one, own, block, groups) if number == 2 else SampleOrder(one, own, block)
            for one, own in zip(sizes, seeds, strict=True)
        ]
        self.number = number
        self.shares = shares(weights) if len(weights) > 1 else np.ones(1, dtype=np.int64)
        if len(weights) > 1 and not all(len(order) for order in self.orders):
            raise ShardsError("a corpus of the mixture has no samples: leave it out")
        self.seed = seed
        self._total = sum(len(order) for order in self.orders)
        self._periods: dict[int, tuple[Indices, Indices]] = {}

    def __len__(self) -> int:
        return self._total

    def __call__(self, epoch: int, position: int) -> tuple[int, int, int]:
        """Return (corpus, shard, index in the shard) at `position` in [0, N) of `epoch`."""
        corpora, shards, indices = self.at(epoch, np.asarray([position], dtype=np.int64))
        return int(corpora[0]), int(shards[0]), int(indices[0])

    def at(self, epoch: int, positions: Indices) -> tuple[Indices, Indices, Indices]:
        """Return corpus, shard and index in the shard at each of `positions`, int64 (n,) each."""
        corpora, epochs, own = self._own(epoch, positions)
        shards, indices = np.empty_like(own), np.empty_like(own)
        for corpus, order in enumerate(self.orders):
            for one in np.unique(epochs[corpora == corpus]):
                mine = np.flatnonzero((corpora == corpus) & (epochs == one))
                shards[mine], indices[mine] = order.at(int(one), own[mine])
        return corpora, shards, indices

    def dealt(self, epoch: int, seen: int, count: int, rank: int, world_size: int) -> Indices:
        """Return which of `count` positions from `seen` on are the rank's, ascending.

        They are sorted by group, those of equal group in their order, and cut in equal runs.
        """
        positions = np.arange(seen, seen + count)
        size = count // world_size
        if world_size == 1 or self.number == 1:
            return positions[rank * size : (rank + 1) * size]
        corpora, epochs, own = self._own(epoch, positions)
        where = np.empty(count)
        for corpus, order in enumerate(self.orders):
            for one in np.unique(epochs[corpora == corpus]):
                mine = np.flatnonzero((corpora == corpus) & (epochs == one))
                # Groups of different corpora meet by their place on the corpus's line.
                where[mine] = (order.group(int(one), own[mine]) + 0.5) / order.groups
        sorted_by_group = np.argsort(where, kind="stable")
        return np.sort(positions[sorted_by_group[rank * size : (rank + 1) * size]])

    def reached(self, epoch: int, position: int) -> list[int]:
        """Return how many samples of each corpus come before a position, from epoch 0 on."""
        if len(self.orders) == 1:
            return [epoch * self._total + position]
        number, place = divmod(epoch * self._total + position, PERIOD)
        before = np.bincount(self._places(number)[0][:place], minlength=len(self.orders))
        return [int(one) for one in number * self.shares + before]

    def _own(self, epoch: int, positions: Indices) -> tuple[Indices, Indices, Indices]:
        """Return the corpus at each position, and the epoch and the position in its own order."""
        outside = (positions < 0) | (positions >= self._total)
        if outside.any():
            raise IndexError(f"position {positions[outside][0]} is not in [0, {self._total})")
        if len(self.orders) == 1:
            return np.zeros_like(positions), np.full_like(positions, epoch), positions
        numbers, places = np.divmod(epoch * self._total + positions, PERIOD)
        corpora, counts = np.empty_like(positions), np.empty_like(positions)
        for number in np.unique(numbers):
            mine = np.flatnonzero(numbers == number)
            drawn, ranks = self._places(int(number))
            corpora[mine], counts[mine] = drawn[places[mine]], ranks[places[mine]]
        counts += numbers * self.shares[corpora]
        lengths = np.asarray([len(order) for order in self.orders], dtype=np.int64)
        epochs, own = np.divmod(counts, lengths[corpora])
        return corpora, epochs, own

    def _places(self, number: int) -> tuple[Indices, Indices]:
        """Return the corpus at each place of a period, and how many of its places came before."""
        known = self._periods.get(number)
        if known is not None:
            return known
        corpora = np.repeat(np.arange(len(self.shares)), self.shares)
        ranks = np.concatenate([np.arange(share) for share in self.shares])
        order = permutation(hash_words(self.seed, number, MIXTURE), len(corpora))
        # The permutation is sorted back within each corpus: its places count up.
        mixed = corpora[order]
        counted = np.empty_like(ranks)
        counted[np.argsort(mixed, kind="stable")] = ranks
        while len(self._periods) >= REMEMBERED:
            del self._periods[next(iter(self._periods))]
        self._periods[number] = mixed, counted
        return mixed, counted


def shares(weights: Sequence[float]) -> Indices:
    """Return each corpus's places among 1,024, int64, by the largest remainders.

    Raises:
        ShardsError: a weight gets none.
    """
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * PERIOD
    found = np.floor(exact).astype(np.int64)
    short = PERIOD - int(found.sum())
    found[np.argsort(found - exact, kind="stable")[:short]] += 1
    if (found == 0).any():
        raise ShardsError(
            f"the weights {list(weights)} leave a corpus without one of {PERIOD} places: raise its "
            "weight or leave it out"
        )
    return found
