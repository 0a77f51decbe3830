"""Where each sample of a split lies: its shard, byte offset and size, read a shard at a time."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import ShardsError
from shards.manifest import Manifest, ShardInfo

# Says in an index which tar it was made of.
STAMP = "tar"


@dataclass(frozen=True)
class Sample:
    """One picture's place: `size` bytes at `offset` of the tar `shard`; `key` names it."""

    key: str
    shard: str
    offset: int
    size: int


@dataclass(frozen=True)
class Span:
    """Samples `first` to `end` - 1 of a shard, which are next to each other in its tar."""

    shard: int
    first: int
    end: int


@dataclass(frozen=True)
class ShardTable:
    """All samples of one shard: keys, and byte offsets and sizes, int64 (samples,).

    `keys` is an Arrow array of strings: a corpus of a million samples has many.
    """

    keys: Any
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)


class SplitIndex:
    """The samples of a split, a table a shard: read when first needed, the last ones kept."""

    def __init__(
        self, manifest: Manifest, tables: Callable[[ShardInfo], ShardTable], kept: int
    ) -> None:
        """Take the manifest, what reads the table of a shard, and how many stay in memory."""
        self._manifest, self._read, self._kept = manifest, tables, kept
        self._tables: OrderedDict[int, ShardTable] = OrderedDict()

    def sample(self, shard: int, index: int) -> Sample:
        """Return the place of sample `index` of shard number `shard`. Raises as `table`."""
        table = self.table(shard)
        return Sample(
            table.keys[index].as_py(),
            self._manifest.shards[shard].tar,
            int(table.offsets[index]),
            int(table.sizes[index]),
        )

    def table(self, shard: int) -> ShardTable:
        """Return all places of shard number `shard`.

        Raises:
            ShardsRuntimeError: the shard can't be read.
            ShardsError: it has not as many samples as the manifest says.
        """
        if shard in self._tables:
            self._tables.move_to_end(shard)
            return self._tables[shard]
        info = self._manifest.shards[shard]
        table = self._read(info)
        if len(table) != info.samples:
            raise ShardsError(
                f"shard {info.name} has {len(table)} samples, the manifest says {info.samples}: "
                "run `pipeline verify`, and make the shard again"
            )
        while len(self._tables) >= self._kept:
            self._tables.popitem(last=False)
        self._tables[shard] = table
        return table


def read_table(data: bytes, where: str, stamp: str | None = None) -> ShardTable:
    """Return the table in the Parquet file `data`; `where` names it in errors.

    Raises:
        ShardsError: it is no such table, or not of the tar that `stamp` stands for.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # No threads: a worker that was forked has none of its parent's.
        file = pq.ParquetFile(io.BytesIO(data), pre_buffer=False)
        table = file.read(columns=["key", "offset", "size"], use_threads=False)
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise ShardsError(
            f"{where} is not the table of a shard: run `pipeline verify`, make the shard again"
        ) from error
    if (
        stamp is not None
        and (file.schema_arrow.metadata or {}).get(STAMP.encode()) != stamp.encode()
    ):
        raise ShardsError(f"{where} is the index of another tar: remove it")
    return ShardTable(
        table["key"].combine_chunks(),
        table["offset"].to_numpy().astype(np.int64),
        table["size"].to_numpy().astype(np.int64),
    )
