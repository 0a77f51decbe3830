"""What a rank reads next of one corpus: the windows of its groups, each named once."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from itertools import count

from shards.reading.index import Span
from shards.streaming.groups import GroupedOrder
from shards.streaming.order import Reading, SampleOrder


class Ahead:
    """The windows that groups walk through from a place on, in the order that they begin in.

    Positions are counted from the beginning of epoch 0.
    """

    def __init__(
        self, order: SampleOrder | GroupedOrder, position: int, rank: int, world_size: int
    ) -> None:
        """Begin at a position; nothing is named yet."""
        self.order, self.begun, self.position = order, position, position
        epoch, place = divmod(position, len(order))
        self._coming: list[tuple[int, int, Reading]] = []  # by where they begin, one of a group
        self._reached: list[tuple[int, int, Reading]] = []  # by where they end; equal: as they came
        self._reaching = count()
        self._named: Counter[Span] = Counter()
        for group in order.groups_of(rank, world_size):
            self._push(group, epoch, order.number_of(epoch, place, group))

    @property
    def window(self) -> int:
        """Samples that all groups' windows have together."""
        return -(-len(self.order) * self.order.block // max(len(self.order.sizes), 1))

    def reach(self, position: int, least: float, most: float) -> tuple[list[Span], list[Span]]:
        """Return the samples that are named now, soonest first, and those that are over.

        Named is what is read at `position` and soon after. How soon, grows with what was read since
        the beginning, from `least` samples to `most`: so all is asked for at twice the pace that it
        is read at, and no quicker. What is spared of the processor is for those who read now.
        """
        self.position = position
        ahead = max(min(position - self.begun, most, len(self.order)), least)
        named = self._count(self._begin_until(position + int(ahead)), 1)
        over = self._count(self._end_until(position), -1)
        passed = set(named) & set(over)  # begun and ended: nobody was told of them
        return [span for span in named if span not in passed], [
            span for span in over if span not in passed
        ]

    def _begin_until(self, position: int) -> Iterable[Reading]:
        while self._coming[0][0] <= position:
            _, group, reading = heapq.heappop(self._coming)
            heapq.heappush(self._reached, (reading.end, next(self._reaching), reading))
            self._push(group, *reading.after)
            yield reading

    def _end_until(self, position: int) -> Iterable[Reading]:
        while self._reached and self._reached[0][0] <= position:
            yield heapq.heappop(self._reached)[2]

    def _count(self, readings: Iterable[Reading], step: int) -> list[Span]:
        """Count each sample's windows; return the samples that have their first, or no more."""
        found = []
        for span in [span for reading in readings for span in reading.spans]:
            self._named[span] += step
            if self._named[span] == max(step, 0):
                found.append(span)
            if not self._named[span]:
                del self._named[span]
        return found

    def _push(self, group: int, epoch: int, number: int) -> None:
        reading = self.order.reading(epoch, group, number)
        heapq.heappush(self._coming, (reading.begin, group, reading))
