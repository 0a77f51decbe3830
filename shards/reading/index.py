"""Where each sample of a split lies: its shard, byte offset and size, read a shard at a time."""

from __future__ import annotations

import io
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.errors import ShardsError, ShardsRuntimeError
from shards.manifest import Manifest
from shards.store import Store

# Shards whose tables stay in memory: about 100 bytes a sample.
KEPT_TABLES = 64


@dataclass(frozen=True)
class Sample:
    """One picture's place: `size` bytes at `offset` of the tar `shard`; `key` names it."""

    key: str
    shard: str
    offset: int
    size: int


@dataclass(frozen=True)
class ShardTable:
    """All samples of one shard: keys, and byte offsets and sizes, int64 (samples,)."""

    keys: list[str]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)


class SplitIndex:
    """The samples of a split. Opening it reads the manifest alone; tables follow on first use."""

    def __init__(self, dest: str | Path, split: str = "train") -> None:
        """Read the manifest.

        Raises:
            ShardsError: there is no manifest, or it is not one of ours.
        """
        self.store = Store(dest)
        self.manifest = Manifest.read(dest, split)
        self._tables: OrderedDict[int, ShardTable] = OrderedDict()

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each shard."""
        return self.manifest.sizes

    def sample(self, shard: int, index: int) -> Sample:
        """Return the place of sample `index` of shard number `shard`."""
        table = self.table(shard)
        return Sample(
            table.keys[index],
            self.manifest.shards[shard].tar,
            int(table.offsets[index]),
            int(table.sizes[index]),
        )

    def table(self, shard: int) -> ShardTable:
        """Return all places of shard number `shard`.

        Raises:
            ShardsError: its sidecar is absent or not as many rows as the manifest says.
        """
        if shard in self._tables:
            self._tables.move_to_end(shard)
            return self._tables[shard]
        while len(self._tables) >= KEPT_TABLES:
            self._tables.popitem(last=False)
        self._tables[shard] = table = self._read(shard)
        return table

    def _read(self, shard: int) -> ShardTable:
        info = self.manifest.shards[shard]
        where = self.store.where(info.sidecar)
        try:
            table = read_table(self.store.read(info.sidecar), where)
        except FileNotFoundError:
            raise ShardsRuntimeError(
                f"{where} is missing: run the same `pipeline shard` again"
            ) from None
        if len(table) != info.samples:
            raise ShardsError(
                f"{where} has {len(table)} samples, the manifest says {info.samples}: "
                "run `pipeline verify`, and make the shard again"
            )
        return table


def read_table(data: bytes, where: str) -> ShardTable:
    """Return the table that the Parquet file `data` holds; `where` names it in errors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(
            io.BytesIO(data), columns=["key", "offset", "size"], use_threads=False
        )
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise ShardsError(
            f"{where} is not the table of a shard: run `pipeline verify`, make the shard again"
        ) from error
    return ShardTable(
        table["key"].to_pylist(),
        table["offset"].to_numpy().astype(np.int64),
        table["size"].to_numpy().astype(np.int64),
    )
