"""Lists all pictures of a corpus in a mixed order, in little memory whatever their number.

Each key has a hash of 128 bits. Half of it places the sample in its split; the other half, mixed
with the seed, places it in the order. So the order depends on the keys and the seed alone, not on
how the corpus is stored, and it is an external sort:

    sources -> batches -> runs of 50,000 rows, each sorted, in files that vanish with the process
            -> ranges of the order, each small enough to sort in memory -> the plan
"""

from __future__ import annotations

import hashlib
import json
import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.common.addresses import mix
from shards.arrays import as_numpy, numbers
from shards.making.members import Tally
from shards.sources.base import LISTING, Entry, Listed, Rows, Source

RUN_ROWS = 50_000
# The listing, with the split and the place that the hash of each key decides.
ORDERED = LISTING.append(pa.field("order", pa.uint64())).append(pa.field("lot", pa.uint64()))
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class ListedCorpus:
    """A listed corpus: `run`s hold its rows, `facts` what each source said of itself.

    Attributes:
        digest: SHA-256-sized sum over all rows and captions: what the corpus holds, by name and
            size, in whatever order.
        stamp: the same with the times of change.
        tally: the formats that names stand for, and what lies beside pictures.
        maps: the memory that the runs are mapped to.
    """

    runs: list[pa.Table]
    facts: list[Listed]
    names: list[str]
    rows: int
    digest: str
    stamp: str
    tally: Tally = field(default_factory=Tally)
    maps: list[mmap.mmap] = field(default_factory=list)

    @property
    def ignored(self) -> int:
        """Files that are not pictures."""
        return sum(fact.ignored for fact in self.facts)

    @property
    def notes(self) -> list[str]:
        """Sentences on files that were left out."""
        return [note for fact in self.facts for note in fact.notes]

    def first(self, count: int) -> list[tuple[int, Entry]]:
        """Return the first `count` pictures in the order, each with its source's number."""
        rows = next(self.ranges()).slice(0, count).to_pylist() if self.rows else []
        return [(row["source"], Entry.from_row(row)) for row in rows]

    def ranges(self) -> Iterator[pa.Table]:
        """Yield the rows in their order, about 50,000 at a time."""
        pieces = max(1, -(-self.rows // RUN_ROWS))
        bounds = [piece * 2**64 // pieces for piece in range(pieces)] + [2**64]
        columns = [as_numpy(run["order"].chunk(0)) for run in self.runs if run.num_rows]
        runs = [run for run in self.runs if run.num_rows]
        for low, high in pairwise(bounds):
            slices = []
            for run, order in zip(runs, columns, strict=True):
                start = int(np.searchsorted(order, np.uint64(low)))
                stop = len(order)
                if high < 2**64:
                    stop = int(np.searchsorted(order, np.uint64(high)))
                slices.append(run.slice(start, stop - start))
            if slices:
                yield _sorted(pa.concat_tables(slices))
            for one in self.maps:  # rows that were read are not needed any more
                one.madvise(mmap.MADV_DONTNEED)


def list_corpus(
    sources: Sequence[Source],
    seed: int,
    scratch: Path | None,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> ListedCorpus:
    """Return the listing of `sources` in the order that `seed` gives.

    Runs go to files under `scratch` (default: the system's) that have no name. `progress` is
    called with the pictures found so far.

    Raises:
        ShardsError: a source cannot be listed.
    """
    sorter = _Sorter(seed, scratch, progress)
    facts = []
    for number, source in enumerate(sources):
        rows = Rows(number, sorter.take, scratch, sorter.tell)
        facts.append(source.collect(rows))
        rows.flush()
    sorter.flush()
    if len(facts) > 1 and all(fact.one_class for fact in facts):
        facts = [replace(fact, labelled=True) for fact in facts]
    captions = _captions_digest(facts)
    return ListedCorpus(
        sorter.runs,
        facts,
        [source.name for source in sources],
        sorter.rows,
        _hex(sorter.digest) + captions,
        _hex(sorter.stamp) + captions,
        sorter.tally,
        sorter.maps,
    )


class _Sorter:
    """Takes batches, hashes their rows, and keeps them as sorted runs."""

    def __init__(
        self,
        seed: int,
        scratch: Path | None,
        progress: Callable[[int, int | None, str], None] | None,
    ) -> None:
        self.seed = seed
        self.scratch = scratch
        self.progress = progress
        self.runs: list[pa.Table] = []
        self.maps: list[mmap.mmap] = []
        self.tally = Tally()
        self.rows = self._seen = 0
        self.digest: Hashes = np.zeros(2, np.uint64)
        self.stamp: Hashes = np.zeros(2, np.uint64)
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_rows = 0

    def take(self, batch: pa.RecordBatch) -> None:
        """Add a batch of `LISTING`."""
        self.tally.take(batch)
        hashes = hash_keys(batch["key"].to_pylist())
        sizes = as_numpy(batch["size"]).astype(np.uint64)
        with np.errstate(over="ignore"):
            content = np.stack([mix(lane ^ mix(sizes)) for lane in hashes.T])
            times = mix(as_numpy(batch["mtime"]).astype(np.uint64))
            self.digest += content.sum(axis=1)
            self.stamp += np.stack([mix(lane ^ times) for lane in content]).sum(axis=1)
        order = mix(hashes[:, 1] ^ mix(np.full(1, self.seed, np.uint64)))
        columns = [*batch.columns, numbers(order), numbers(hashes[:, 0])]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=ORDERED))
        self._waiting_rows += batch.num_rows
        self.rows += batch.num_rows
        self.tell(0)
        if self._waiting_rows >= RUN_ROWS:
            self.flush()

    def tell(self, more: int) -> None:
        """Report the progress of the listing; `more` files were seen that may become rows."""
        self._seen = max(self._seen + more, self.rows)
        if self.progress is not None:
            self.progress(self._seen, None, "listed")

    def flush(self) -> None:
        """Make a run of the rows that were taken since the last one."""
        table = _sorted(pa.Table.from_batches(self._waiting, schema=ORDERED))
        self._waiting, self._waiting_rows = [], 0
        if table.num_rows < RUN_ROWS:  # a small corpus, or the end of a large one
            self.runs.append(table)
            return
        mapped = _spilled(table, self.scratch)
        self.maps.append(mapped)
        self.runs.append(pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all())


def hash_keys(keys: Sequence[str]) -> Hashes:
    """Return two 64-bit hashes of each key, shape (len(keys), 2): BLAKE2b, alike everywhere."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys)
    return np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2)


def _sorted(table: pa.Table) -> pa.Table:
    by = ("order", "key", "source", "location", "offset")
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in by])
    return table.take(order).combine_chunks()


def _spilled(table: pa.Table, scratch: Path | None) -> mmap.mmap:
    """Return the Arrow file of `table`, mapped from a file without a name."""
    file: IO[bytes]
    with tempfile.TemporaryFile(dir=scratch) as file:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _captions_digest(facts: Sequence[Listed]) -> str:
    """Return a short hash of the descriptions that lie in files of their own."""
    described: list[Any] = [[fact.captions, fact.columns, fact.classes] for fact in facts]
    text = json.dumps(described, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _hex(lanes: Hashes) -> str:
    return "".join(f"{int(lane):016x}" for lane in lanes)
