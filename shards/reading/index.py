"""Finds each sample of a split: its shard, byte offset and size. Tables are read shard by shard."""

from __future__ import annotations

import contextlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import ShardsError
from shards.manifest import Manifest, ShardInfo

# The key in an index that names the tar it was made of.
STAMP = "tar"
# The columns of a sidecar that reading needs.
SAMPLE_COLUMNS = ("key", "offset", "size")


@dataclass(frozen=True)
class Sample:
    """One picture's place: `size` bytes at `offset` of the tar `shard`; `key` names it.

    `sha256` (hex) is that of its bytes, where the table says it. `place` is the shard's number and
    the sample's index in it.
    """

    key: str
    shard: str
    offset: int
    size: int
    sha256: str | None = None
    place: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Span:
    """Samples `first` to `end` - 1 of a shard, which are next to each other in its tar."""

    shard: int
    first: int
    end: int


@dataclass(frozen=True)
class ShardTable:
    """All samples of one shard: keys, and byte offsets and sizes, int64 (samples,).

    `keys` is an Arrow array of strings: a corpus of a million samples has many. `digests` are the
    SHA-256 (hex) of the pictures, where the table has them and they were asked for.
    """

    keys: Any
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    digests: Any = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Bytes in memory; a file of the table has about as many or fewer."""
        columns = (self.keys, self.offsets, self.sizes, self.digests)
        return sum(column.nbytes for column in columns if column is not None)


class SplitIndex:
    """The samples of a split, a table a shard: read when first needed, the last ones kept."""

    def __init__(
        self, manifest: Manifest, tables: Callable[[ShardInfo], ShardTable], kept: int
    ) -> None:
        """Take the manifest, a function that reads a shard's table, and how many to keep."""
        self._manifest, self._read, self.kept = manifest, tables, kept
        self._tables: OrderedDict[int, ShardTable] = OrderedDict()
        self._locks: dict[int, threading.Lock] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_locks": {}}

    def sample(self, shard: int, index: int) -> Sample:
        """Return the place of sample `index` of shard number `shard`. Raises as `table`."""
        table = self.table(shard)
        return Sample(
            table.keys[index].as_py(),
            self._manifest.shards[shard].tar,
            int(table.offsets[index]),
            int(table.sizes[index]),
            table.digests[index].as_py() if table.digests is not None else None,
            (shard, index),
        )

    def has(self, shard: int) -> bool:
        """Whether the places of shard number `shard` are in memory."""
        return shard in self._tables

    def forget(self, shard: int | None = None) -> None:
        """Read the table of a shard, or all tables, anew when next needed."""
        if shard is None:
            self._tables.clear()
            self._locks = {}
        else:
            self._tables.pop(shard, None)

    def table(self, shard: int) -> ShardTable:
        """Return all places of shard number `shard`.

        Raises:
            ShardsRuntimeError: the shard can't be read.
            ShardsError: it has not as many samples as the manifest says.
        """
        known = self._tables.get(shard)
        if known is not None:
            with contextlib.suppress(KeyError):  # another thread made room
                self._tables.move_to_end(shard)
            return known
        with self._locks.setdefault(shard, threading.Lock()):
            known = self._tables.get(shard)
            return known if known is not None else self._made(shard)

    def _made(self, shard: int) -> ShardTable:
        info = self._manifest.shards[shard]
        table = self._read(info)
        if len(table) != info.samples:
            raise ShardsError(
                f"shard {info.name} has {len(table)} samples, the manifest says {info.samples}: "
                "run `pipeline verify`, and make the shard again"
            )
        self._tables[shard] = table
        while len(self._tables) > self.kept:
            with contextlib.suppress(KeyError):  # another thread made room as well
                self._tables.popitem(last=False)
        return table


def read_table(
    data: bytes, where: str, stamp: str | None = None, digests: bool = False
) -> ShardTable:
    """Return the table in the Parquet file `data`; `where` names it in errors.

    With `digests`, the pictures' checksums are read as well, where the table has all of them.

    Raises:
        ShardsError: it is no such table, or not of the tar that `stamp` stands for.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from shards.tables import checked

    try:
        # No threads: a worker that was forked has none of its parent's.
        file = pq.ParquetFile(io.BytesIO(data), pre_buffer=False)
        with_digests = digests and "sha256" in file.schema_arrow.names
        columns = [*SAMPLE_COLUMNS, "sha256"] if with_digests else list(SAMPLE_COLUMNS)
        table = checked(file.read(columns=columns, use_threads=False))
        keys = table["key"].combine_chunks()
        if keys.type != pa.string():  # casting imports all of Arrow's functions
            keys = keys.cast(pa.string())
        offsets, sizes = (_numbers(table[name]) for name in ("offset", "size"))
        sums = _checksums(table["sha256"]) if with_digests else None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ShardsError(
            f"{where} is not the table of a shard: run `pipeline verify`, make the shard again"
        ) from error
    metadata = file.schema_arrow.metadata or {}
    if stamp is not None and metadata.get(STAMP.encode()) != stamp.encode():
        raise ShardsError(f"{where} is the index of another tar: remove it")
    return ShardTable(keys, offsets, sizes, sums)


def _numbers(column: Any) -> npt.NDArray[np.int64]:
    """Return a column of bytes or places; raises ValueError where one is missing or negative."""
    from shards.arrays import as_numpy

    if column.null_count or str(column.type) not in ("int64", "uint64", "int32"):
        raise ValueError("is no column of numbers")
    numbers: npt.NDArray[np.int64] = as_numpy(column).astype(np.int64)
    if len(numbers) and numbers.min() < 0:
        raise ValueError("a number is negative")
    return numbers


def _checksums(column: Any) -> Any:
    """Return a column of checksums; None where one is missing."""
    sums = column.combine_chunks()
    return None if sums.null_count else sums
