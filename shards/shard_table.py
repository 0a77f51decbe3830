"""The shards of a split too large for JSON: a Parquet table, read in part.

A split of more than 10,000 shards has them in `SPLIT.shards.parquet` beside its manifest, a row
each. Training reads the column of the numbers of samples, 8 bytes a shard, and of the other columns
the rows of the shards that it comes to.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt

# Shards beyond which a manifest has a table of them.
MANY = 10_000

# Rows that are read together, and how many such groups stay in memory.
ROWS, KEPT = 4096, 64


@dataclass(frozen=True)
class ShardInfo:
    """One shard: `NAME.tar` has `samples` samples, `bytes` bytes and this SHA-256 (hex)."""

    name: str
    samples: int
    bytes: int
    sha256: str

    @property
    def tar(self) -> str:
        """The tar's file name."""
        return f"{self.name}.tar"

    @property
    def sidecar(self) -> str:
        """The file name of the table that describes the tar's samples."""
        return f"{self.name}.parquet"


class StoredShards(Sequence[ShardInfo]):
    """The shards of a split, from a table that is read as far as it is asked for."""

    def __init__(self, opened: Callable[[], IO[bytes]], digest: str) -> None:
        """Take what opens the table; `digest` is that of its shards.

        Raises:
            OSError, ArrowException: it can't be read, or is no table of shards.
        """
        self._opened, self.digest = opened, digest
        self._groups: OrderedDict[int, list[ShardInfo]] = OrderedDict()
        self.samples = self.column("samples")

    def column(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of numbers, `samples` or `bytes`, int64 (shards,)."""
        from shards.arrays import as_numpy

        return as_numpy(self._read(columns=[name])[name]).astype(np.int64, copy=False)

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, number: int) -> ShardInfo: ...

    @overload
    def __getitem__(self, number: slice) -> list[ShardInfo]: ...

    def __getitem__(self, number: int | slice) -> ShardInfo | list[ShardInfo]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"shard {number} of {len(self)}")
        group, row = divmod(number % len(self), ROWS)
        if group not in self._groups:
            while len(self._groups) >= KEPT:
                self._groups.popitem(last=False)
            self._groups[group] = [ShardInfo(**one) for one in self._read(group).to_pylist()]
        return self._groups[group][row]

    def __iter__(self) -> Iterator[ShardInfo]:
        return (self[number] for number in range(len(self)))

    def _read(self, group: int | None = None, columns: list[str] | None = None) -> Any:
        import pyarrow.parquet as pq

        from shards.tables import checked, reading_table

        # Opened anew each time: descriptors and connections don't travel to other processes.
        with self._opened() as stream, reading_table():
            file = pq.ParquetFile(stream, pre_buffer=False)
            if group is None:
                return checked(file.read(columns=columns, use_threads=False))
            return checked(file.read_row_group(group, use_threads=False))


def shards_file(split: str) -> str:
    """Return the name of the table of a split's shards."""
    return f"{split}.shards.parquet"


def shards_digest(shards: Iterable[ShardInfo]) -> str:
    """Return the SHA-256 (hex) of what shards are."""
    if isinstance(shards, StoredShards):
        return shards.digest
    found = hashlib.sha256()
    for one in shards:
        found.update(f"{one.name} {one.samples} {one.bytes} {one.sha256}\n".encode())
    return found.hexdigest()


def table_of(shards: Sequence[ShardInfo]) -> bytes:
    """Return the bytes of a table of shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from shards.arrays import array

    columns = {
        "name": array([one.name for one in shards], pa.string()),
        "samples": array([one.samples for one in shards], pa.int64()),
        "bytes": array([one.bytes for one in shards], pa.int64()),
        "sha256": array([one.sha256 for one in shards], pa.string()),
    }
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(list(columns.values()), list(columns)),
        sink,
        row_group_size=ROWS,
        compression="zstd",
    )
    return sink.getvalue()
