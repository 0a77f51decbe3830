"""Streams batches from shards: `stream` for one epoch, `Stream` without end and from any place."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.common.printable import printable
from shards.errors import ShardsError, ShardsRuntimeError
from shards.reading.cache import Cache
from shards.reading.opening import Dest, open_corpora
from shards.reading.ranges import Traffic
from shards.streaming.augment import Augment
from shards.streaming.device import on_device
from shards.streaming.groups import GROUPS
from shards.streaming.loading import WorkerDiedError, Workers
from shards.streaming.mixture import ORDER
from shards.streaming.source import Batch, BatchSource, Skipped, too_many_broken

log = logging.getLogger(__name__)

Batches = Generator[Batch, None, None]

# The order of states that name none: they were saved before there was another.
FIRST_ORDER = 1

# Deaths of workers in a row, without a batch in between, that are no accident.
MAX_DEATHS = 3
# Seconds after the first request in which a single death already means too small a machine.
SETTLED = 600.0

# Batches of a worker whose pictures are asked for while one is decoded.
BEGUN = 3


def _check(workers: int, crop: int, augment: Augment | None) -> None:
    """Raise `ShardsError` for less than no workers, and crops too small for augmentation's."""
    if workers < 0:
        raise ShardsError(f"workers is {workers}: give 0 or more")
    if augment is not None and augment.needed() > crop:
        raise ShardsError(
            f"crops of {augment.crop} at scale {augment.downscale} are cut from "
            f"{augment.needed()} pixels, the stream's crop is {crop}: raise it to that"
        )


class Stream(IterableDataset[Batch]):
    """Yields batches of random crops, epoch after epoch, in an exact order.

    The picture at a position of an epoch, its crop and its flip are functions of (shards, seed,
    epoch, position): the same for any number of ranks and workers. The global batch that follows
    `samples_seen` samples has the next G = batch_size x world_size positions. Ranks
    take them by groups, so that each rank reads its own share of the corpus. Samples after the
    last whole global batch of an epoch are dropped.

    Iterating continues from `state_dict()`, which counts received samples, not those that workers
    made ahead. In a worker of a DataLoader (`loader`), a stream makes its share of the batches, and
    `batch.state` is the state to continue from. Accelerate's `prepare` returns a stream unchanged.

    Args:
        dest: a folder or any fsspec URL to which `pipeline shard` wrote; or a pattern that ends in
            `.tar`, for tars from other tools; or several of these with their weights,
            `{"shards/a": 3, "shards/b": 1}`.
        split: name of the split.
        batch_size: pictures in a batch of this rank.
        crop: side of the crops in pixels; smaller pictures are mirrored until they fill it.
        seed: of the order, the crops and the flips.
        rank: this process's number, below `world_size`.
        world_size: processes that train together.
        workers: processes that decode for this rank; with 0, this process decodes.
        block: as many samples as this number of shards has are shuffled together.
        groups: parts into which the corpus is cut, a power of two. Ranks read whole groups, so
            choose at least as many as there will be nodes.
        order: number of the order of samples; None: that of the loaded state, or else the newest.
        flip: whether half of the crops are mirrored left to right.
        max_broken: broken samples in a row that stop the run.
        epochs: number of epochs of an iteration; None: no end.
        held_out: number of samples that are left out of all epochs (`shards.streaming.holding`).
        cache: the cache for shards behind a URL; None: `Cache()`.
        device: the device to which images are copied, ahead of use; None: they stay in memory.
        augment: operations on the images there, which are then float32 in [0, 1]. Its crop is cut
            from the stream's. Its flips come in addition: pass `flip=False` with it.

    Raises:
        ShardsError: there is no such split, an argument is out of range, or there are fewer
            samples than one global batch.
    """

    def __init__(
        self,
        dest: Dest,
        *,
        split: str = "train",
        batch_size: int,
        crop: int = 256,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        block: int = 8,
        groups: int = GROUPS,
        order: int | None = None,
        flip: bool = True,
        max_broken: int = 16,
        epochs: int | None = None,
        held_out: int = 0,
        cache: Cache | None = None,
        device: str | torch.device | None = None,
        augment: Augment | None = None,
    ) -> None:
        """Open the shards in `dest`."""
        _check(workers, crop, augment)
        corpora, weights = open_corpora(dest, split, cache, block)
        for corpus in corpora:
            corpus.reads(1 / (max(world_size, 1) * max(workers, 1)), max(world_size, 1))
        self._source = BatchSource(
            corpora,
            weights,
            batch_size=batch_size,
            crop=crop,
            seed=seed,
            rank=rank,
            world_size=world_size,
            block=block,
            groups=groups,
            order=order or ORDER,
            flip=flip,
            max_broken=max_broken,
            held_out=held_out,
        )
        self._order = order
        self.workers, self.epochs = workers, epochs
        self.augment = augment
        self.device = torch.device(device or "cpu") if device or augment else None
        self.broken: dict[str, str] = {}
        self.traffic = Traffic()
        self._epoch = self._seen = self._in_a_row = 0
        # Processes that load pictures and died, and were started again.
        self.deaths = 0
        self._iterator: Batches | None = None
        self._workers: Workers[Batch | Exception] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The iterator has processes of its own; a copy starts without.
        return {**self.__dict__, "_iterator": None, "_workers": None}

    @property
    def samples(self) -> int:
        """Samples in an epoch."""
        return self._source.samples

    @property
    def global_batch(self) -> int:
        """Pictures of a batch, over all ranks."""
        return self._source.global_batch

    @property
    def batches_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.samples // self._source.global_batch

    def state_dict(self) -> dict[str, int]:
        """Return the start of the next batch, `{"epoch", "samples_seen", "order"}`.

        It is the same on all ranks.
        """
        return self._source.state(self._epoch, self._seen)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from `state`; the number of ranks may differ from that of the saved stream.

        A state without an order is one of order 1.

        Raises:
            ShardsError: this is not a state, it has more samples than an epoch, or its order is not
                the one with which this stream was opened.
        """
        if not {"epoch", "samples_seen"} <= set(state) <= {"epoch", "samples_seen", "order"}:
            raise ShardsError(
                f"a stream's state has epoch, samples_seen and order, this one {sorted(state)}"
            )
        epoch, seen = int(state["epoch"]), int(state["samples_seen"])
        order = int(state.get("order", FIRST_ORDER))
        if self._order not in (None, order):
            raise ShardsError(
                f"the state counts in order {order}, the stream was opened with order "
                f"{self._order}: open it without"
            )
        if epoch < 0 or not 0 <= seen <= self.samples:
            raise ShardsError(
                f"the state is at epoch {epoch}, {seen} samples seen, but an epoch has "
                f"{self.samples} samples: give the shards that it was saved with"
            )
        self._source.count_in(order)
        self.close()
        self._epoch, self._seen = epoch, seen

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from the present state on. One iteration at a time."""
        self.close()
        self._iterator = self._received()
        return self._iterator

    def loader(self, workers: int = 0) -> DataLoader[Batch]:
        """Return a DataLoader over this stream, for code that needs one.

        Accelerate's `prepare` leaves it as it is: the ranks' parts are cut already. It does not
        move this stream's state: `batch.state` says what to continue from.
        """
        loader = DataLoader(self, batch_size=None, num_workers=workers, generator=torch.Generator())
        loader._is_accelerate_prepared = True
        return loader

    def close(self) -> None:
        """End the iteration: stop its workers, close files. Iterating again continues."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()
        # An iteration that an error ended leaves them: they may hang, and others have to be told
        # of the error first.
        self._end_workers(at_once=True)
        self._source.close()

    def _received(self) -> Batches:
        """Yield batches, counting each as seen when it is handed over."""
        end = self._epoch + (self.epochs or 0)
        made = self._by_workers() if self.workers and get_worker_info() is None else self._made()
        batches: Iterator[Batch] = made
        if self.device is not None:
            if get_worker_info() is not None:
                raise ShardsError(
                    "a stream with a device or augmentation has no place in a DataLoader's "
                    "worker: iterate over the stream itself, with workers of its own"
                )
            batches = on_device(made, self.device, self._augmented if self.augment else None)
        try:
            for batch in batches:
                self._note(batch)
                self._epoch, self._seen = batch.state["epoch"], batch.state["samples_seen"]
                yield batch
            self._epoch, self._seen = end, 0
        finally:
            made.close()

    def _augmented(self, batch: Batch) -> Tensor:
        assert self.augment is not None
        return self.augment(
            batch.images, self._source.seed, batch.epoch, batch.positions, batch.extents
        )

    def _made(self) -> Batches:
        """Make batches in this process: all of them, or a DataLoader worker's share."""
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        places = self._source.places(self._epoch, self._seen, self.epochs)
        own = islice(places, first, None, step)
        ahead = deque(islice(own, 1))
        while ahead:
            epoch, seen = ahead.popleft()
            self._source.begin(epoch, seen)
            yield self._source.batch(epoch, seen)
            # The first batch waits for nothing but itself; later ones are begun early.
            ahead.extend(islice(own, BEGUN - len(ahead)))
            for place in ahead:
                self._source.begin(*place)

    def _by_workers(self) -> Batches:
        """Yield the batches of `workers` processes in order, started again where one dies.

        One that dies soon ends the iteration: whoever began it is there to give it more memory.
        """
        pin = self.device is not None and self.device.type == "cuda"
        # Workers may be ahead of the batches handed over, which this stream's state counts.
        place = copy.copy(self)
        deaths, begun = 0, time.monotonic()
        while True:
            self._workers = Workers(_WorkerSide(place), self.workers, pin)
            try:
                for made in self._workers:
                    if isinstance(made, Exception):
                        raise made
                    place._epoch, place._seen = made.state["epoch"], made.state["samples_seen"]
                    deaths = 0
                    yield made
                self._end_workers()
                return
            except WorkerDiedError as error:
                deaths += 1
                self.deaths += 1
                self._end_workers(at_once=True)
                soon = time.monotonic() - begun < SETTLED
                if soon or deaths == MAX_DEATHS:
                    often = "" if soon else f", {deaths} times in a row at the same place"
                    raise ShardsRuntimeError(
                        f"a process that loads pictures {error}{often}: give the job more memory, "
                        "or fewer workers"
                    ) from error
                log.warning(
                    "a process that loads pictures %s: started again at its place (%d so far)",
                    error,
                    self.deaths,
                )
            except GeneratorExit:
                self._end_workers()
                raise

    def _end_workers(self, at_once: bool = False) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.end(at_once)

    def _note(self, batch: Batch) -> None:
        """Count and name broken samples; too many in a row end the run."""
        failed: dict[int, list[Skipped]] = {}
        for skipped in batch.skipped:
            failed.setdefault(skipped.position, []).append(skipped)
            self.broken[skipped.key] = skipped.reason
            told = f"skipped broken sample {skipped.key}: {skipped.reason}"
            log.warning("%s", printable(told))
        self.traffic += batch.traffic
        for position in batch.positions:
            self._in_a_row += len(failed.get(position, ()))
            if self._in_a_row >= self._source.max_broken:
                raise too_many_broken(self._in_a_row, batch.skipped[-1])
            if position not in failed:
                self._in_a_row = 0


class _WorkerSide(IterableDataset[Batch | Exception]):
    """A stream in a worker, its errors passed on whole: a DataLoader would bury them in text."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[Batch | Exception]:
        try:
            yield from self.stream._made()
        except (ShardsError, ShardsRuntimeError) as error:
            yield error


def stream(
    dest: Dest,
    *,
    split: str = "train",
    batch_size: int,
    crop: int = 256,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    workers: int = 0,
    block: int = 8,
    groups: int = GROUPS,
    order: int = ORDER,
    flip: bool = True,
    cache: Cache | None = None,
) -> Iterator[Batch]:
    """Yield the batches of one epoch, `batch_size` per rank; the last incomplete one is dropped.

    The first `start` samples of the epoch, over all ranks, are skipped. Other arguments are as in
    `Stream`.

    Raises:
        ShardsError: as `Stream`, at the call.
    """
    batches = Stream(
        dest,
        split=split,
        batch_size=batch_size,
        crop=crop,
        seed=seed,
        rank=rank,
        world_size=world_size,
        workers=workers,
        block=block,
        groups=groups,
        order=order,
        flip=flip,
        epochs=1,
        cache=cache,
    )
    batches.load_state_dict({"epoch": epoch, "samples_seen": start, "order": order})
    return iter(batches)
