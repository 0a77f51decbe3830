"""`pipeline inspect --stream`: how much each node reads while a split is streamed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.errors import ShardsError
from shards.manifest import Manifest
from shards.reading.index import Span
from shards.reading.ranges import part_size
from shards.streaming.groups import GROUPS, GroupedOrder


@dataclass(frozen=True)
class StreamFacts:
    """What each of `nodes` nodes reads of a split, in bytes.

    Attributes:
        split: the split's name.
        nodes: how many nodes train together.
        groups: parts that the corpus is cut into.
        block: shards whose number of samples is shuffled together.
        fetched: what the node with the largest share reads in an epoch.
        share: that, as a share of the corpus.
        kept: room on its disk below which it fetches some bytes twice in an epoch.
        once: room on its disk with which it fetches nothing after the first epoch.
        bandwidth: bytes a second that it needs to read `rate` samples a second over all nodes.
        rate: samples a second over all nodes.
    """

    split: str
    nodes: int
    groups: int
    block: int
    fetched: int
    share: float
    kept: int
    once: int
    bandwidth: float
    rate: float


def stream_facts(
    dest: str | Path,
    split: str,
    nodes: int,
    *,
    block: int = 8,
    groups: int = GROUPS,
    rate: float = 1000.0,
) -> StreamFacts:
    """Return how much each of `nodes` nodes reads while `split` of `dest` is streamed.

    Raises:
        ShardsError: no such split, it has no samples, or the numbers make no sense.
    """
    if nodes < 1 or rate <= 0:
        raise ShardsError(f"{nodes} nodes at {rate:g} samples a second: give more than 0 of both")
    manifest = Manifest.read(dest, split)
    if not manifest.samples:
        raise ShardsError(f"{dest} has no samples of split {split}: there is nothing to stream")
    order = GroupedOrder(manifest.sizes, 0, block, groups)
    total = int(sum(manifest.byte_sizes))
    part = part_size(total, nodes)
    shares = [
        _bytes(order.share(order.groups_of(node, nodes)), manifest, part) for node in range(nodes)
    ]
    fetched = max(shares)
    mean = total / manifest.samples
    held = max(len(order.groups_of(node, nodes)) for node in range(nodes))
    # A window and the one after it, each up to twice as long as most are, and their edges.
    window = order.window * mean + part
    return StreamFacts(
        split=split,
        nodes=nodes,
        groups=order.groups,
        block=block,
        fetched=fetched,
        share=fetched / total,
        kept=min(round(2 * held * window), fetched),
        once=fetched,
        bandwidth=rate * mean / nodes,
        rate=rate,
    )


def _bytes(spans: list[Span], manifest: Manifest, part: int) -> int:
    """Return about how many bytes the parts have that hold `spans`."""
    found = 0
    for span in spans:
        info = manifest.shards[span.shard]
        begin, end = (info.bytes * one // info.samples for one in (span.first, span.end))
        found += min(-(-end // part) * part, info.bytes) - begin // part * part
    return found
