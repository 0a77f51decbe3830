"""`pipeline inspect`: the contents of a destination in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards.errors import ShardsError
from shards.manifest import Manifest, splits
from shards.samples.sample import SIDECAR
from shards.store import Store
from shards.tables import read_rows

COLUMNS = ["key", "offset", "size", "width", "height", "format", "mode"]


@dataclass(frozen=True)
class Spread:
    """Least, median and greatest of a quantity."""

    least: float
    median: float
    greatest: float

    @classmethod
    def of(cls, values: Any) -> Spread:
        """Return the spread of an array; zeros for an empty one."""
        if not len(values):
            return cls(0, 0, 0)
        return cls(float(np.min(values)), float(np.median(values)), float(np.max(values)))


@dataclass(frozen=True)
class SplitFacts:
    """The contents of one split. Sides are in pixels, sizes in bytes."""

    split: str
    shards: int
    samples: int
    listed: int
    rejected: int
    reasons: dict[str, int]
    bytes: int
    classes: int
    formats: dict[str, int]
    modes: dict[str, int]
    width: Spread
    height: Spread
    picture_bytes: Spread
    seed: int
    digest: str


def inspect(dest: str | Path, split: str | None = None) -> list[SplitFacts]:
    """Return the contents of each split of `dest` (or of `split` alone), read from its tables.

    Raises:
        ShardsError: nothing complete is there, or a table is missing.
    """
    return [facts_of(manifest, read_tables(dest, manifest)) for manifest in manifests(dest, split)]


def manifests(dest: str | Path, split: str | None = None) -> list[Manifest]:
    """Return the manifests in `dest`, or that of `split`; raises ShardsError if there is none."""
    names = [split] if split else splits(Store(dest)) or ["train"]
    return [Manifest.read(dest, name) for name in names]


def read_tables(dest: str | Path, manifest: Manifest) -> pa.Table:
    """Return the rows of all sidecars of a split: `COLUMNS`, and the number of the `shard`."""
    return pa.concat_tables([_nothing(), *_tables(Store(dest), manifest)])


def facts_of(manifest: Manifest, table: pa.Table) -> SplitFacts:
    """Return the facts in `manifest` and the rows of its sidecars."""
    return SplitFacts(
        split=manifest.split,
        shards=len(manifest.shards),
        samples=manifest.samples,
        listed=manifest.listed,
        rejected=manifest.rejected,
        reasons=manifest.reasons,
        bytes=sum(info.bytes for info in manifest.shards),
        classes=len(manifest.classes),
        formats=_counts(table["format"]),
        modes=_counts(table["mode"]),
        width=Spread.of(table["width"].to_numpy()),
        height=Spread.of(table["height"].to_numpy()),
        picture_bytes=Spread.of(table["size"].to_numpy()),
        seed=manifest.seed,
        digest=manifest.digest,
    )


def _tables(store: Store, manifest: Manifest) -> Iterator[pa.Table]:
    for number, info in enumerate(manifest.shards):
        try:
            with store.open(info.sidecar) as stream:
                table = read_rows(stream, COLUMNS)
            shard = pa.array(np.full(table.num_rows, number, np.int32))
            yield table.append_column("shard", shard)
        except (FileNotFoundError, pa.ArrowException) as error:
            raise ShardsError(
                f"{store.where(info.sidecar)} is missing or damaged: run `pipeline verify {store}`"
            ) from error


def _nothing() -> pa.Table:
    schema = pa.schema([SIDECAR.field(name) for name in COLUMNS])
    return schema.append(pa.field("shard", pa.int32())).empty_table()


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(Counter(column.to_pylist()).most_common())
