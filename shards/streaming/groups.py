"""The second order of training: each group of samples keeps to its own part of a corpus.

Legend: N samples in S shards, C groups, e an epoch, p a position in [0, N), w a window in samples.

    line      shards permuted by the seed, end to end:   3 0 | 4 1 | 5 2      cut into C equal parts
    cycle     C positions in a row: each group has one   p -> group g, place k = p div C of g
    group     its part of the line in another order each epoch, windows of w samples permuted

The line is cut by samples, so the groups' numbers of samples differ by one at most, and each part
is cut from few shards. A group stays with its part for all epochs. So whoever computes the same
groups again and again reads, and keeps, that share of the corpus alone.

Which group a position belongs to is drawn anew in each cycle, but evenly: any run of positions
meets all stretches of the line equally often (a van der Corput sequence with Owen's scrambling).
Sorted by group, a global batch of any size can therefore be cut for any number of ranks, and a
rank meets nearly the same groups in each.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pipeline.common.addresses import hash_words, permutation, scattered
from shards.errors import ShardsError
from shards.purposes import CYCLE, LAST_CYCLE, PHASE, PIECES, ROTATION, SAMPLES, SHARDS
from shards.reading.index import Span
from shards.streaming.order import Indices, Reading

K = TypeVar("K")
V = TypeVar("V")

GROUPS = 64

# Groups have this many samples or more: a small corpus has fewer groups.
SMALLEST = 64


@dataclass(frozen=True)
class _Walk:
    """A group's part of the line as one epoch walks through it.

    Pieces of shards lie end to end: piece i begins at `starts[i]` and holds the samples of
    `shards[i]` from `firsts[i]` on. The walk of `size` samples begins at `rotation` and goes round.
    Its windows have `window` samples or more: the first one has `phase` besides, so that those of
    different groups end at different times and fetching is even, and the last one has the rest.
    """

    shards: Indices
    firsts: Indices
    starts: Indices
    size: int
    window: int
    rotation: int
    phase: int

    @property
    def last(self) -> int:
        """The number of the last window."""
        return max((self.size - self.phase) // self.window, 1) - 1

    def number(self, places: Indices) -> Indices:
        """Return the number of the window of each place, int64 (n,)."""
        return np.clip((places - self.phase) // self.window, 0, self.last)

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first place of a window, and the place after its last."""
        begin, end = (self.phase + one * self.window for one in (number, number + 1))
        return begin if number else 0, end if number < self.last else self.size

    def spans(self, number: int) -> list[Span]:
        """Return the spans of samples that a window reads."""
        begin, end = self.bounds(number)
        found: list[Span] = []
        offset, left = (begin + self.rotation) % max(self.size, 1), end - begin
        while left > 0:
            piece = int(np.searchsorted(self.starts, offset, side="right")) - 1
            within = offset - int(self.starts[piece])
            after = int(self.starts[piece + 1]) if piece + 1 < len(self.starts) else self.size
            count = min(left, after - offset)
            first = int(self.firsts[piece]) + within
            found.append(Span(int(self.shards[piece]), first, first + count))
            offset, left = (offset + count) % self.size, left - count
        return found


class GroupedOrder:
    """The sample at each position of each epoch of one corpus, and the group it belongs to.

    Each epoch is a permutation: every sample once. The shards are sorted once; finding a position
    costs one permutation of a window then, wherever in the epoch it lies.
    """

    number = 2

    def __init__(
        self, sizes: Sequence[int] | Indices, seed: int = 0, block: int = 8, groups: int = GROUPS
    ) -> None:
        """Take the number of samples in each shard.

        The windows of all groups together have the samples of `block` shards of mean size.

        Raises:
            ShardsError: `block` is below 1, `groups` no power of two, or a shard has a negative
                number of samples.
        """
        if block < 1:
            raise ShardsError(f"block is {block}: give the number of shards to shuffle together")
        if groups < 1 or groups & (groups - 1):
            raise ShardsError(f"groups is {groups}: give a power of two, 64 say")
        self.sizes = np.asarray(sizes, dtype=np.int64).reshape(-1)
        if (self.sizes < 0).any():
            raise ShardsError("a shard has a negative number of samples: make the shards again")
        self.seed, self.block = seed, block
        self._total = total = int(self.sizes.sum())
        self.groups = min(groups, 1 << max(total // SMALLEST, 1).bit_length() - 1)
        self._levels = self.groups.bit_length() - 1
        self._lay_out()
        self.window = max(-(-total * block // (max(len(self.sizes), 1) * self.groups)), 1)
        self._walks: OrderedDict[tuple[int, int], _Walk] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], tuple[Indices, Indices]] = OrderedDict()

    def __len__(self) -> int:
        return self._total

    def __call__(self, epoch: int, position: int) -> tuple[int, int]:
        """Return (shard, index in the shard) of the sample at `position` in [0, N) of `epoch`."""
        shards, indices = self.at(epoch, np.asarray([position], dtype=np.int64))
        return int(shards[0]), int(indices[0])

    def at(self, epoch: int, positions: Indices) -> tuple[Indices, Indices]:
        """Return the shard, and the index in it, of each of `positions`, int64 (n,) each."""
        outside = (positions < 0) | (positions >= self._total)
        if outside.any():
            raise IndexError(f"position {positions[outside][0]} is not in [0, {self._total})")
        groups = self.group(epoch, positions)
        places = positions // self.groups
        shards, indices = np.empty_like(places), np.empty_like(places)
        for group in np.unique(groups):
            mine = np.flatnonzero(groups == group)
            shards[mine], indices[mine] = self._samples(epoch, int(group), places[mine])
        return shards, indices

    def group(self, epoch: int, positions: Indices) -> Indices:
        """Return the group in [0, C) that each position belongs to, int64 (n,).

        Source: Owen, "Randomly permuted (t, m, s)-nets and (t, s)-sequences", 1995, in one
        dimension: digit by digit, each flipped by a hash of those before it.
        """
        cycles, digits = np.divmod(positions, self.groups)
        # Only some groups have a place in the last cycle: the same ones in each epoch.
        own = np.uint64(hash_words(self.seed, epoch, CYCLE))
        last = np.uint64(hash_words(self.seed, LAST_CYCLE))
        keys = np.where(cycles < self._total // self.groups, own, last)
        group = np.zeros_like(positions)
        for level in range(self._levels):
            above = digits & ((1 << level) - 1)
            flips = scattered(keys, cycles * self.groups + (1 << level) + above)
            flipped = (digits >> level & 1) ^ (flips & np.uint64(1)).astype(np.int64)
            group = group << 1 | flipped
        return group

    def number_of(self, epoch: int, position: int, group: int) -> int:
        """Return the number of the window that a group is in around a position."""
        walk = self._walk(epoch, group)
        place = min(position // self.groups, walk.size - 1)
        return int(walk.number(np.asarray([place]))[0])

    def reading(self, epoch: int, group: int, number: int) -> Reading:
        """Return what a group reads in a window."""
        walk = self._walk(epoch, group)
        begin, end = (min(one * self.groups, self._total) for one in walk.bounds(number))
        before = epoch * self._total
        after = (epoch, number + 1) if number < walk.last else (epoch + 1, 0)
        return Reading(before + begin, before + end, walk.spans(number), after)

    def groups_of(self, rank: int, world_size: int) -> range:
        """Return the groups that a rank meets, those that it shares with neighbours included."""
        first, end = rank * self.groups // world_size, -(-(rank + 1) * self.groups // world_size)
        return range(first, end)

    def share(self, groups: range) -> list[Span]:
        """Return the spans that `groups`, neighbours, read in an epoch."""
        begin, end = int(self._cuts[groups.start]), int(self._cuts[groups.stop])
        low = int(np.searchsorted(self._ends, begin, side="right"))
        found: list[Span] = []
        while begin < end:
            shard, after = int(self._line[low]), int(self._ends[low])
            start = after - int(self.sizes[shard])
            if begin < after:
                found.append(Span(shard, begin - start, min(after, end) - start))
            begin, low = max(begin, after), low + 1
        return found

    def _lay_out(self) -> None:
        """Lay the shards on a line, and cut it."""
        self._line = permutation(hash_words(self.seed, SHARDS), len(self.sizes))
        self._ends = np.cumsum(self.sizes[self._line])
        whole, rest = divmod(self._total, self.groups)
        counts = np.full(self.groups, whole, dtype=np.int64)
        counts[self.group(0, np.arange(self._total - rest, self._total))] += 1
        self._cuts = np.concatenate([[0], np.cumsum(counts)])

    def _samples(self, epoch: int, group: int, places: Indices) -> tuple[Indices, Indices]:
        """Return shard and index of each of a group's places in `epoch`."""
        walk = self._walk(epoch, group)
        numbers = walk.number(places)
        shards, indices = np.empty_like(places), np.empty_like(places)
        for number in np.unique(numbers):
            mine = np.flatnonzero(numbers == number)
            begun, _ = walk.bounds(int(number))
            found = self._window(epoch, group, int(number))
            shards[mine], indices[mine] = (one[places[mine] - begun] for one in found)
        return shards, indices

    def _walk(self, epoch: int, group: int) -> _Walk:
        known = self._walks.get((epoch, group))
        if known is not None:
            return known
        begin, end = int(self._cuts[group]), int(self._cuts[group + 1])
        low = int(np.searchsorted(self._ends, begin, side="right"))
        high = int(np.searchsorted(self._ends, end, side="left")) + 1 if end > begin else low
        ends, shards = self._ends[low:high], self._line[low:high]
        begins = ends - self.sizes[shards]
        firsts = np.maximum(begin - begins, 0)
        counts = np.minimum(ends, end) - begins - firsts
        order = permutation(hash_words(self.seed, epoch, PIECES, group), len(shards))
        size = end - begin
        rotation = hash_words(self.seed, epoch, ROTATION, group) % max(size, 1)
        phase = hash_words(self.seed, epoch, PHASE, group) % self.window
        counts = counts[order]
        starts = np.cumsum(counts) - counts
        walk = _Walk(shards[order], firsts[order], starts, size, self.window, rotation, phase)
        _remember(self._walks, (epoch, group), walk, 2 * self.groups)
        return walk

    def _window(self, epoch: int, group: int, number: int) -> tuple[Indices, Indices]:
        """Return shard and index of the samples of a window, in the order of `epoch`."""
        known = self._windows.get((epoch, group, number))
        if known is not None:
            return known
        walk = self._walk(epoch, group)
        begin, end = walk.bounds(number)
        order = permutation(hash_words(self.seed, epoch, SAMPLES, group, number), end - begin)
        offsets = (order + (begin + walk.rotation)) % walk.size
        pieces = np.searchsorted(walk.starts, offsets, side="right") - 1
        made = walk.shards[pieces], walk.firsts[pieces] + offsets - walk.starts[pieces]
        _remember(self._windows, (epoch, group, number), made, 2 * self.groups)
        return made


def _remember(known: OrderedDict[K, V], key: K, made: V, kept: int) -> None:
    """Remember a window, and forget the oldest one."""
    while len(known) >= kept:
        known.popitem(last=False)
    known[key] = made
