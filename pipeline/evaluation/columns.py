"""The columns of the report's table of costs: a line here is a column there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.evaluation.results import ModelResult, PeerResult, Point


@dataclass(frozen=True)
class Column:
    """A column: its heading, and its text for a model and for a classical codec.

    With `peer` None, nothing is known of classical codecs, and they get a dash.
    """

    title: str
    model: Callable[[ModelResult], str]
    peer: Callable[[PeerResult], str] | None = None

    def of_peer(self, peer: PeerResult) -> str:
        """Return the text for a classical codec."""
        return self.peer(peer) if self.peer else "–"


def si(value: float) -> str:
    """Return a count with the unit a reader expects: 64990000 -> 65.0 M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def seconds(value: float | None) -> str:
    """Return a duration in milliseconds below a second, else in seconds; a dash for None."""
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def _middle(peer: PeerResult) -> Point:
    return peer.points[len(peer.points) // 2]


COSTS = (
    Column("parameters", lambda model: si(model.parameters)),
    Column("kMAC a pixel", lambda model: si(model.kmac_per_pixel)),
    Column(
        "encode",
        lambda model: seconds(model.point.mean("encode_seconds")),
        lambda peer: seconds(_middle(peer).mean("encode_seconds")),
    ),
    Column(
        "decode",
        lambda model: seconds(model.point.mean("decode_seconds")),
        lambda peer: seconds(_middle(peer).mean("decode_seconds")),
    ),
    Column("peak memory", lambda model: f"{si(model.peak_memory_bytes)}B"),
)
