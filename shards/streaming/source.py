"""Makes batches by arithmetic: any process can make a rank's batch at any place of an epoch.

Legend: B pictures to a rank's batch, R ranks, G = B R pictures to a global batch, S side of a crop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.common.addresses import hash_words
from shards.errors import ShardsError, ShardsRuntimeError
from shards.purposes import SUBSTITUTE
from shards.reading import turbo
from shards.reading.corpus import Corpus
from shards.reading.decode import BrokenPictureError, CropDraw, Pixels, decode_crop, filled
from shards.reading.ranges import Traffic
from shards.streaming.ahead import Ahead
from shards.streaming.holding import trained_sizes
from shards.streaming.mixture import MixedOrder

# A broken sample is replaced by the one this many positions later: its shard is at hand.
NEAR = 1000

# Seconds for which a store may fail before training waits, where the cache has the room.
SECONDS_AHEAD = 60.0

# Corpus, shard and index in the shard of a sample.
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be decoded; another one took its position."""

    key: str
    position: int
    reason: str


@dataclass(frozen=True)
class Batch:
    """Pictures of one step for one rank, all of one epoch.

    Attributes:
        images: uint8 (B, 3, S, S), RGB.
        keys: the samples' keys, B of them.
        positions: their positions in the epoch, ascending.
        epoch: the epoch of the positions.
        state: the state of a stream after this batch, `{"epoch", "samples_seen", "order"}`.
        skipped: broken samples that others replaced.
        extents: height and width in pixels of the part of each crop that shows its picture, from
            the upper left corner. They are below S if the picture is smaller; the rest mirrors it.
        slots: the pictures' places in the global batch, in [0, G). Further draws for a picture use
            them as an address, so that draws do not depend on ranks.
        traffic: bytes and requests that reading it from a store took.
    """

    images: Tensor
    keys: list[str]
    positions: list[int]
    epoch: int
    state: dict[str, int]
    skipped: tuple[Skipped, ...] = ()
    extents: tuple[tuple[int, int], ...] = ()
    slots: tuple[int, ...] = ()
    traffic: Traffic = field(default_factory=Traffic)

    def pin_memory(self) -> Batch:
        """Return the batch with its images in pinned memory: a DataLoader calls this."""
        return replace(self, images=self.images.pin_memory())


class BatchSource:
    """Makes the batch at any place. Any process may hold a copy: all state is open files."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: Sequence[float],
        *,
        batch_size: int,
        crop: int,
        seed: int,
        rank: int,
        world_size: int,
        block: int,
        groups: int,
        order: int,
        flip: bool,
        max_broken: int,
        held_out: int = 0,
    ) -> None:
        """Raises ShardsError for numbers that make no batches, and for fewer samples than G."""
        for name, value in (("batch_size", batch_size), ("crop", crop), ("max_broken", max_broken)):
            if value < 1:
                raise ShardsError(f"{name} is {value}: give 1 or more")
        if not 0 <= rank < world_size:
            raise ShardsError(f"rank {rank} of {world_size}: give 0 <= rank < world_size")
        turbo.library()  # looked for once, before workers are forked
        self.corpora = corpora
        self._weights, self._block, self._groups = weights, block, groups
        self._sizes = trained_sizes(corpora, held_out)
        self.order = self._ordered(order, seed)
        self.batch_size, self.crop, self.seed = batch_size, crop, seed
        self.rank, self.world_size = rank, world_size
        self.flip, self.max_broken = flip, max_broken
        self._ahead: list[Ahead] = []
        self._furthest = 0
        self._told = Traffic()
        self._begun: dict[tuple[int, int], list[tuple[int, Place]]] = {}
        self._reached, self._pace = (time.monotonic(), 1 << 62), 0.0
        self.global_batch = batch_size * world_size
        if len(self.order) < self.global_batch:
            raise ShardsError(
                f"{self.name} has {len(self.order)} samples, fewer than one global batch of "
                f"{self.global_batch} ({batch_size} on each of {world_size} ranks): "
                "take smaller batches or more pictures"
            )

    def count_in(self, order: int) -> None:
        """Count positions in the order of this number from now on; raises ShardsError."""
        if order != self.order.number:
            self.order = self._ordered(order, self.seed)
            self._ahead, self._begun = [], {}

    def _ordered(self, number: int, seed: int) -> MixedOrder:
        return MixedOrder(
            self._sizes, self._weights, seed, self._block, number=number, groups=self._groups
        )

    @property
    def name(self) -> str:
        """The name of the corpora, for messages."""
        return " + ".join(corpus.name for corpus in self.corpora)

    @property
    def samples(self) -> int:
        """The number of samples in an epoch, those of its dropped last part included."""
        return len(self.order)

    def places(self, epoch: int, seen: int, epochs: int | None) -> Iterator[tuple[int, int]]:
        """Yield (epoch, samples seen before) of every global batch from a place on.

        What is left of an epoch after its last whole global batch is dropped. None: for ever.
        """
        last = None if epochs is None else epoch + epochs
        while last is None or epoch < last:
            while seen + self.global_batch <= self.samples:
                yield epoch, seen
                seen += self.global_batch
            epoch, seen = epoch + 1, 0

    def batch(self, epoch: int, seen: int) -> Batch:
        """Return this rank's part of the global batch at a place."""
        # The first batch waits for itself alone: what is wanted later begins behind it.
        first = not self._ahead
        if not first:
            self._look_ahead(epoch, seen)
        places = self._begun.pop((epoch, seen), None) or self._places(epoch, seen)
        positions = [position for position, _ in places]
        images = np.empty((self.batch_size, 3, self.crop, self.crop), dtype=np.uint8)
        keys: list[str] = []
        skipped: list[Skipped] = []
        extents: list[tuple[int, int]] = []
        for row, (position, place) in enumerate(places):
            key, pixels = self._picture(epoch, position, place, skipped)
            keys.append(key)
            extents.append((pixels.shape[0], pixels.shape[1]))
            images[row] = filled(pixels, self.crop).transpose(2, 0, 1)
        if first:
            self._look_ahead(epoch, seen)
        # What came while others worked, since the last batch, is counted as well.
        before, self._told = self._told, self.traffic
        return Batch(
            torch.from_numpy(images),
            keys,
            positions,
            epoch,
            self.state(epoch, seen + self.global_batch),
            tuple(skipped),
            tuple(extents),
            tuple(position - seen for position in positions),
            self._told - before,
        )

    def begin(self, epoch: int, seen: int) -> None:
        """Begin to fetch what `batch` will read at a place, if it is not on this machine."""
        if not self.remote or (epoch, seen) in self._begun:
            return
        places = self._places(epoch, seen)
        for number, corpus in enumerate(self.corpora):
            own = [(shard, index) for _, (one, shard, index) in places if one == number]
            if own:
                corpus.begin(own)
        self._begun[epoch, seen] = places
        self._furthest = epoch * self.samples + seen

    @property
    def remote(self) -> bool:
        """Whether a corpus is read through a network."""
        return any(corpus.remote for corpus in self.corpora)

    @property
    def traffic(self) -> Traffic:
        """The requests and bytes that reading from stores took in this process."""
        return sum((corpus.traffic for corpus in self.corpora), Traffic())

    def state(self, epoch: int, seen: int) -> dict[str, int]:
        """Return the state of a stream that has seen so many samples of `epoch`."""
        return {"epoch": epoch, "samples_seen": seen, "order": self.order.number}

    def close(self) -> None:
        """Close files; making a batch opens them again."""
        self._ahead, self._begun = [], {}
        for corpus in self.corpora:
            corpus.close()

    def _look_ahead(self, epoch: int, seen: int) -> None:
        """Have made ready what is read around a place, and as much later as will be read soon."""
        if not self.remote:
            return
        place = epoch * self.samples + seen
        self._measure(place)
        reached = self.order.reached(epoch, seen)
        if any(one.position > now for one, now in zip(self._ahead, reached, strict=False)):
            self._ahead = []  # gone back: by nobody who goes through a stream
        if not self._ahead:
            self._ahead = [
                Ahead(order, now, self.rank, self.world_size)
                for order, now in zip(self.order.orders, reached, strict=True)
            ]
        least = max(self._furthest - place, 0) + self.global_batch
        weights = self.order.shares / self.order.shares.sum()
        for corpus, ahead, now, share in zip(
            self.corpora, self._ahead, reached, weights.tolist(), strict=True
        ):
            own = max(share * least, ahead.window if corpus.whole else 0)
            named, over = ahead.reach(now, own, share * SECONDS_AHEAD * self._pace)
            if named or over:
                corpus.expect(named, over)

    def _measure(self, count: int) -> None:
        """Record when so many samples were reached: the pace tells how many are needed soon."""
        now, (begun, first) = time.monotonic(), self._reached
        if count <= first:
            self._reached = now, count
        elif now - begun >= 1.0:
            self._pace, self._reached = (count - first) / (now - begun), (now, count)

    def _places(self, epoch: int, seen: int) -> list[tuple[int, Place]]:
        """Return this rank's positions of a global batch, and the sample at each."""
        dealt = self.order.dealt(epoch, seen, self.global_batch, self.rank, self.world_size)
        corpora, shards, indices = (one.tolist() for one in self.order.at(epoch, dealt))
        places = list(zip(corpora, shards, indices, strict=True))
        return list(zip(dealt.tolist(), places, strict=True))

    def _picture(
        self, epoch: int, position: int, place: Place, skipped: list[Skipped]
    ) -> tuple[str, Pixels]:
        """Return key and crop, S at most, for a position, noting what had to be skipped for it.

        `place` is the corpus, the shard and the index of the sample that is to be there.
        """
        draw = CropDraw.at(self.seed, epoch, position, self.flip)
        for attempt in range(self.max_broken):
            number, shard, index = place
            corpus = self.corpora[number]
            sample = corpus.sample(shard, index)
            try:
                pixels = decode_crop(corpus.read(sample), self.crop, draw)
            except BrokenPictureError as error:
                skipped.append(Skipped(sample.key, position, str(error)))
                ahead = hash_words(self.seed, epoch, position, SUBSTITUTE, attempt) % NEAR
                place = self.order(epoch, (position + 1 + ahead) % self.samples)
            else:
                return sample.key, pixels[:, ::-1] if draw.flip else pixels
        raise too_many_broken(self.max_broken, skipped[-1])


def too_many_broken(count: int, last: Skipped) -> ShardsRuntimeError:
    """Return the error that stops a run after `count` broken samples in a row."""
    return ShardsRuntimeError(
        f"{count} broken samples in a row, the last is {last.key} ({last.reason}): "
        "run `pipeline verify` on the shards"
    )
