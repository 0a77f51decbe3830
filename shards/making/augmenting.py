"""Augments pictures: decodes them, applies the operations, encodes the results.

Without servers a picture takes all of it at once. With servers (`shards.augment.server`), which
work on the GPUs, the pictures of a shard go to one of them in batches; the next batches are decoded
and the last ones encoded meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from shards.augment.operations import Augmenter
from shards.augment.server import AHEAD, Remote
from shards.augment.writing import Decoded, Result, Writer
from shards.errors import ShardsError
from shards.making.inorder import in_order
from shards.making.stage_times import Clock, Spent
from shards.options import Options
from shards.samples.sample import Ready

Prepare = Callable[[dict[str, Any]], Result]
BATCH_PIXELS = (
    1 << 22
)  # in bytes of the pictures that go to a server at once, unless one alone has more
BATCH_ROWS = 256


class Opened(NamedTuple):
    """A picture on its way, or the row of its reject."""

    result: Result
    decoded: Decoded | None = None


class Augmenting:
    """Augments the samples of shards, one shard after the other; `clock` measures each stage."""

    def __init__(self, options: Options, addresses: Sequence[str] = ()) -> None:
        spec = options.spec
        if spec is None or options.augment is None:
            raise ShardsError("these options ask for no augmentation")
        self.clock = Clock()
        self._writer = Writer(spec, options.check)
        self._addresses = addresses
        self._lines: dict[str, Remote] = {}
        if not addresses:
            self._augmenter = Augmenter(spec, options.seed, options.augment["device"])

    def groups(
        self, number: int, prepare: Prepare, rows: Iterable[dict[str, Any]], threads: int
    ) -> Iterator[list[Result]]:
        """Yield, for each row of the plan, in order, the samples of its picture or its reject.

        `number` is the shard's: it chooses the server.
        """
        if not self._addresses:
            return in_order(lambda row: self._made(self._opened(prepare, row)), rows, threads)
        address = self._addresses[number % len(self._addresses)]
        if address not in self._lines:
            self._lines[address] = Remote(address)
        opened = in_order(lambda row: self._opened(prepare, row), rows, threads)
        return self._through(self._lines[address], opened)

    def close(self) -> None:
        """Close the connections to servers."""
        while self._lines:
            self._lines.popitem()[1].close()

    def _opened(self, prepare: Prepare, row: dict[str, Any]) -> Opened:
        with self.clock.times("decoding"):
            result = prepare(row)
            if not isinstance(result, Ready):
                return Opened(result)
            decoded = self._writer.decoded(result)
            return Opened(decoded) if isinstance(decoded, dict) else Opened(result, decoded)

    def _made(self, one: Opened) -> list[Result]:
        if one.decoded is None or not isinstance(one.result, Ready):
            return [one.result]
        key = one.result.row["key"]
        with self.clock.times("operating"):
            made = self._augmenter.each([(key, one.decoded.pixels)])[key]
        with self.clock.times("encoding"):
            return self._writer.results(one.result, made, one.decoded.profile)

    def _through(self, line: Remote, opened: Iterable[Opened]) -> Iterator[list[Result]]:
        """Yield the results of pictures that go through a server, a few batches ahead."""
        waiting: deque[list[Opened]] = deque()
        for batch in _batches(opened):
            line.send(
                [
                    (one.result.row["key"], one.decoded.pixels)
                    for one in batch
                    if isinstance(one.result, Ready) and one.decoded is not None
                ]
            )
            waiting.append([_without_pixels(one) for one in batch])
            if len(waiting) > AHEAD:
                yield from self._received(line, waiting.popleft())
        while waiting:
            yield from self._received(line, waiting.popleft())

    def _received(self, line: Remote, batch: list[Opened]) -> Iterator[list[Result]]:
        with self.clock.times("waiting"):
            made, working, queueing = line.receive()
        self.clock.add(Spent(working=working, queueing=queueing))
        for one in batch:
            if one.decoded is None or not isinstance(one.result, Ready):
                yield [one.result]
                continue
            found = made.pop(one.result.row["key"])
            with self.clock.times("encoding"):
                results = self._writer.results(one.result, found, one.decoded.profile)
            yield results


def _without_pixels(one: Opened) -> Opened:
    """Return a picture that was sent: its pixels are not kept here."""
    if one.decoded is None:
        return one
    return one._replace(decoded=one.decoded._replace(pixels=one.decoded.pixels[:0].copy()))


def _batches(opened: Iterable[Opened]) -> Iterator[list[Opened]]:
    batch: list[Opened] = []
    pixels = 0
    for one in opened:
        batch.append(one)
        pixels += one.decoded.pixels.size // 3 if one.decoded is not None else 0
        if pixels >= BATCH_PIXELS or len(batch) >= BATCH_ROWS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch
