"""Several corpora in one order: which corpus, and which of its samples, at each position.

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

from shards.errors import ShardsError
from shards.streaming.order import MIXTURE, Indices, SampleOrder, hashed, permutation

PERIOD = 1024


class MixedOrder:
    """The corpus and the sample at each position of each epoch of a mixture.

    With one corpus it is that corpus's own order.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[int]],
        weights: Sequence[float],
        seed: int = 0,
        block: int = 8,
    ) -> None:
        """Take the shards' sizes and the weight of each corpus.

        Raises:
            ShardsError: a corpus has no samples, or a weight below 1/2048 of all.
        """
        self.orders = [
            SampleOrder(one, hashed(seed, number) if number else seed, block)
            for number, one in enumerate(sizes)
        ]
        self.shares = shares(weights) if len(weights) > 1 else np.ones(1, dtype=np.int64)
        if len(weights) > 1 and not all(len(order) for order in self.orders):
            raise ShardsError("a corpus of the mixture has no samples: leave it out")
        self.seed = seed
        self._total = sum(len(order) for order in self.orders)
        self._period: tuple[int, Indices, Indices] | None = None

    def __len__(self) -> int:
        return self._total

    def __call__(self, epoch: int, position: int) -> tuple[int, int, int]:
        """Return (corpus, shard, index in the shard) at `position` in [0, N) of `epoch`."""
        if not 0 <= position < self._total:
            raise IndexError(f"position {position} is not in [0, {self._total})")
        number, place = divmod(epoch * self._total + position, int(self.shares.sum()))
        corpora, ranks = self._places(number)
        corpus = int(corpora[place])
        count = number * int(self.shares[corpus]) + int(ranks[place])
        return corpus, *self.orders[corpus](*divmod(count, len(self.orders[corpus])))

    def blocks(self, epoch: int, position: int) -> list[list[int]]:
        """Return, for each corpus, the shards being read around a position, then the next block's.

        In the order in which they will be needed.
        """
        number, place = divmod(epoch * self._total + position, int(self.shares.sum()))
        before = np.bincount(self._places(number)[0][:place], minlength=len(self.orders))
        counts = number * self.shares + before
        return [
            _here_and_next(order, *divmod(int(count), len(order)))
            for order, count in zip(self.orders, counts, strict=True)
        ]

    def _places(self, number: int) -> tuple[Indices, Indices]:
        """Return the corpus at each place of a period, and how many of its places came before."""
        if self._period is None or self._period[0] != number:
            corpora = np.repeat(np.arange(len(self.shares)), self.shares)
            ranks = np.concatenate([np.arange(share) for share in self.shares])
            order = permutation(hashed(self.seed, number, MIXTURE), len(corpora))
            # The permutation is sorted back within each corpus: its places count up.
            mixed = corpora[order]
            counted = np.empty_like(ranks)
            counted[np.argsort(mixed, kind="stable")] = ranks
            self._period = (number, mixed, counted)
        return self._period[1], self._period[2]


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
            f"of the weights {list(weights)} one is too small to be kept among {PERIOD} places: "
            "raise it or leave its corpus out"
        )
    return found


def _here_and_next(order: SampleOrder, epoch: int, position: int) -> list[int]:
    here = order.block_shards(epoch, position)
    after = order.block_shards(epoch, position, ahead=1) or order.block_shards(epoch + 1, 0)
    return [*here, *(shard for shard in after if shard not in here)]
