"""The plan of a split: which sample goes into which shard. It is made once, then only read.

It is stored in the destination as `.SPLIT.plan.DIGEST.parquet`, a row group a shard, so that
whoever makes a shard reads the rows of that shard alone; `.SPLIT.plan.json` beside it is written
last, names it, and says what the plan was made from. Of two runs that plan at once, one creates it
and has the split.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.common.documents import parse
from pipeline.common.pictures.errors import first_line
from shards.arrays import array, as_numpy
from shards.errors import ShardsError
from shards.making.listing import ListedCorpus
from shards.making.matches import Matches, names_of
from shards.making.members import common_members
from shards.options import Options, parse_split
from shards.sources.base import LISTING, Listed, decode_path
from shards.store import Store
from shards.tables import checked, reading_table

NOTES = 20  # sentences on what was left out that a plan keeps
REPEATED = ["source", "label"]  # columns with few different values
# Options that the shards of a plan depend on.
IDENTIFYING = (
    *("seed", "shard_size", "min_side", "max_area", "max_aspect"),
    *("check", "dedupe", "labels"),
)
MOST_SHARDS = 1_000_000  # names have six digits
BLOCK = 512  # a tar's unit: a header takes one, contents are filled up to one
ROWS = (
    LISTING.append(pa.field("captions", pa.list_(pa.string())))
    .append(pa.field("columns", pa.string()))
    .append(pa.field("duplicate", pa.string()))
)
Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """What `.SPLIT.plan.json` says: what the split is made from, and how many shards it will have.

    `sources` are names as messages show them; `classes` are labels in the order of their numbers.
    `ending` is that of every picture's member ("": its own format's, as plans were made before),
    `members` are endings that every sample has a member of. `rows` is the name of the file with the
    rows ("": `.SPLIT.plan.parquet`, as plans were made before).
    """

    split: str
    options: dict[str, Any]
    source_digest: str
    stamp: str
    listed: int
    shards: int
    bytes: int
    ignored: int
    sources: list[str]
    classes: list[str]
    notes: list[str] = field(default_factory=list)
    ending: str = ""
    members: list[str] = field(default_factory=list)
    rows: str = ""

    @staticmethod
    def file_name(split: str) -> str:
        """Return the name of the plan's file in a destination."""
        return f".{split}.plan.json"

    @property
    def rows_file(self) -> str:
        """The name of the file with the plan's rows."""
        return self.rows or f".{self.split}.plan.parquet"

    @property
    def identity(self) -> str:
        """Short hash of what the shards depend on: plans that differ in times alone share it.

        How pictures are augmented is not part of it, since later versions write more of it down.
        """
        said = [self.split, self.source_digest, self.shards, self.listed, self.ending]
        said += [self.options.get(name) for name in IDENTIFYING]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]

    @classmethod
    def read(cls, store: Store, split: str) -> Plan | None:
        """Return the plan of `split` in `store`, or None when there is none."""
        try:
            plan = cls(**parse(store.read(cls.file_name(split))))
            plan.check(split)
            return plan
        except FileNotFoundError:
            return None
        except (TypeError, ValueError) as error:
            where = store.where(cls.file_name(split))
            raise ShardsError(f"{where} is not a plan: start anew with --fresh") from error

    def check(self, split: str) -> None:
        """Raise ValueError where this is no plan of `split`: its values come from a file."""
        texts = (self.split, self.source_digest, self.stamp, self.ending, self.rows)
        numbers = (self.listed, self.shards, self.bytes, self.ignored)
        lists = (self.sources, self.classes, self.notes, self.members)
        own = re.compile(rf"(\.{re.escape(split)}\.plan(\.[0-9a-f]+)?\.parquet)?")
        if not (
            all(isinstance(one, str) for one in texts)
            and all(type(one) is int and one >= 0 for one in numbers)
            and all(isinstance(one, list) for one in lists)
            and all(isinstance(one, str) for known in lists for one in known)
            and isinstance(self.options, dict)
            and self.split == split
            and self.shards <= MOST_SHARDS
            and own.fullmatch(self.rows)
        ):
            raise ValueError("a value is none that a plan has")

    def part(self, part: tuple[int, int]) -> range:
        """Return the numbers of the shards that part I of N, `part`, makes."""
        return range(part[0], self.shards, part[1])

    def write(self, store: Store) -> None:
        """Write `.SPLIT.plan.json`."""
        store.write(self.file_name(self.split), self._text().encode())

    def claim(self, store: Store) -> None:
        """Create `.SPLIT.plan.json`; raises FileExistsError where there is another plan."""
        store.create(self.file_name(self.split), self._text().encode())

    def _text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def check_planned(store: Store, split: str, identity: str) -> None:
    """Refuse to go on writing a split whose plan is no longer the one of `identity`.

    Raises:
        ShardsError: another run planned it anew meanwhile, or its plan was removed.
    """
    plan = Plan.read(store, split)
    if plan is None or plan.identity != identity:
        raise planned_anew(store, split)


def planned_anew(store: Store, split: str) -> ShardsError:
    """Return the error for a run whose split another run has taken over."""
    return ShardsError(
        f"{store}: another run started split {split!r} anew, or its plan was removed, while this "
        "run went on: nothing more is written; let one run end before you start another there"
    )


class PlanRows:
    """The rows of a stored plan, shard by shard; a context manager that closes the file."""

    def __init__(self, file: IO[bytes], plan: Plan, where: str = "the plan") -> None:
        self._stream, self._where = file, where
        self._sources = len(plan.sources)
        with self._undamaged():
            self._file = pq.ParquetFile(file)
        metadata = self._file.metadata
        self.counts = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        missing = {*ROWS.names} - {*self._file.schema_arrow.names}
        if missing or (len(self.counts), metadata.num_rows) != (plan.shards, plan.listed):
            raise self._damaged("it belongs to another plan")

    @classmethod
    def of(cls, store: Store, plan: Plan) -> PlanRows:
        """Open the stored rows of `plan`; raises ShardsError where they are damaged."""
        return cls(store.open(plan.rows_file), plan, store.where(plan.rows_file))

    def __enter__(self) -> PlanRows:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def shard(self, number: int) -> pa.Table:
        """Return the rows (columns of `ROWS`) of shard `number`; raises ShardsError."""
        with self._undamaged():
            rows = self._file.read_row_group(number).select(ROWS.names)
            rows = checked(rows.cast(ROWS))
        sources = as_numpy(rows["source"])
        if len(sources) and not 0 <= sources.min() <= sources.max() < self._sources:
            raise self._damaged("a row names no source")
        return rows

    def columns(self, names: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield the number of each shard with the columns `names` of its rows."""
        for number in range(len(self.counts)):
            with self._undamaged():
                found = checked(self._file.read_row_group(number, columns=list(names)))
            yield number, found

    @contextlib.contextmanager
    def _undamaged(self) -> Iterator[None]:
        """Raise ShardsError, inside the block, for bytes that are no table of rows."""
        try:
            with reading_table():
                yield
        except pa.ArrowException as error:
            raise self._damaged(first_line(error)) from error

    def _damaged(self, why: str) -> ShardsError:
        return ShardsError(f"{self._where} is damaged ({why}): start anew with --fresh")


def make_plans(
    corpus: ListedCorpus,
    options: Options,
    files: Mapping[str, IO[bytes]],
    duplicates: Mapping[str, str] | None = None,
    ending: str = "",
) -> dict[str, Plan]:
    """Write the rows of every split's plan into its file, and return the plans by split.

    Args:
        corpus: the listing.
        options: what decides the shards.
        files: by split, the file that takes the rows.
        duplicates: for the key of a picture that came before, the key it came under first.
        ending: of every picture's member; "": each has its format's.
    """
    shares = parse_split(options.split)
    makers = {split: _Maker(files[split], options) for split in shares}
    bounds = np.cumsum(list(shares.values()))[:-1]
    matches = Matches(corpus.facts)
    for table in corpus.ranges():
        lots = np.searchsorted(bounds, as_numpy(table["lot"]) / 2.0**64, side="right")
        rows = completed(table, corpus.facts, options.labels, duplicates or {})
        matches.take(rows)
        for number, maker in enumerate(makers.values()):
            maker.take(
                rows.filter(array((lots == number).tolist(), pa.bool_()))
                if len(makers) > 1
                else rows
            )
    classes = _classes(corpus.facts, makers.values()) if options.labels else []
    members = common_members(corpus.tally, corpus.facts, options.labels) if ending else []
    return {
        split: Plan(
            split=split,
            options=options.to_dict(),
            source_digest=corpus.digest,
            stamp=corpus.stamp,
            listed=maker.listed,
            shards=maker.finish(),
            bytes=maker.bytes,
            ignored=corpus.ignored,
            sources=corpus.names,
            classes=classes,
            notes=[*_few(corpus.notes), *matches.notes()],
            ending=ending,
            members=members,
        )
        for split, maker in makers.items()
    }


def _few(notes: list[str]) -> list[str]:
    more = len(notes) - NOTES
    return notes if more <= 0 else [*notes[:NOTES], f"and so on: {more:,} more such lines"]


class _Maker:
    """Cuts the rows of one split, in order, into shards: a row group each."""

    def __init__(self, file: IO[bytes], options: Options) -> None:
        self.options = options
        self._spec = options.spec
        self.listed = self.shards = self.bytes = 0
        self.labels: set[str] = set()
        self._writer = pq.ParquetWriter(file, ROWS, compression="zstd", use_dictionary=REPEATED)
        self._held: list[pa.Table] = []  # rows of the next shard, which is not full yet
        self._held_bytes = 0

    def take(self, rows: pa.Table) -> None:
        """Add rows: a shard takes samples while they stay within the size that is asked for.

        A sample larger than that gets a shard of its own.
        """
        self.listed += rows.num_rows
        self.labels.update(label for label in pc.unique(rows["label"]).to_pylist() if label)
        total = np.cumsum(self._costs(rows))
        start, before = 0, 0
        while start < rows.num_rows:
            room = self.options.shard_size - self._held_bytes
            end = max(int(np.searchsorted(total, before + room, side="right")), start)
            if end == start and not self._held:
                end = start + 1
            if end > start:
                self._held.append(rows.slice(start, end - start))
                self._held_bytes += int(total[end - 1]) - before
                start, before = end, int(total[end - 1])
            if start < rows.num_rows:
                self._write()

    def finish(self) -> int:
        """Write the last shard; return the number of shards."""
        if self._held:
            self._write()
        self._writer.close()
        return self.shards

    def _costs(self, rows: pa.Table) -> Sizes:
        costs = tar_bytes(rows)
        if self._spec is None:
            return costs
        sizes = map(self._spec.bytes_per_picture, costs.tolist())
        return np.fromiter(sizes, np.int64, len(costs))

    def _write(self) -> None:
        rows = pa.concat_tables(self._held)
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self.shards += 1
        self.bytes += self._held_bytes
        self._held, self._held_bytes = [], 0


def tar_bytes(rows: pa.Table) -> Sizes:
    """Return about how many bytes each sample takes in a tar: headers and filling included."""
    sizes = np.maximum(as_numpy(rows["size"]), 0)
    costs: Sizes = BLOCK + -(-sizes // BLOCK) * BLOCK
    for column, extra in (("label", 4 * BLOCK), ("captions", 4 * BLOCK), ("columns", 2 * BLOCK)):
        costs += extra * as_numpy(rows[column].is_valid())
    siblings = rows["siblings"].combine_chunks()
    parents = as_numpy(pc.list_parent_indices(siblings))
    beside = as_numpy(pc.struct_field(pc.list_flatten(siblings), "size"))
    np.add.at(costs, parents, BLOCK + -(-np.maximum(beside, 0) // BLOCK) * BLOCK)
    return costs


def completed(
    table: pa.Table,
    facts: Sequence[Listed],
    labels: bool = True,
    duplicates: Mapping[str, str] | None = None,
) -> pa.Table:
    """Return the rows as the plan has them: unique keys, labels, captions and columns decided."""
    table = table.drop_columns(["order", "lot"])
    labelled = [number for number, fact in enumerate(facts) if fact.labelled and labels]
    keep = pc.is_in(table["source"], array(labelled, pa.int32()))
    table = _with(
        table, "label", pc.if_else(keep, table["label"], pa.nulls(len(table), pa.string()))
    )
    table = _with(table, "key", _unique(table))
    described = any(fact.captions or fact.columns for fact in facts)
    captions, columns = _described(table, facts) if described else (None, None)
    size = table.num_rows
    found = [duplicates.get(key) for key in table["key"].to_pylist()] if duplicates else None
    for name, values in (("captions", captions), ("columns", columns), ("duplicate", found)):
        kind = ROWS.field(name).type
        table = table.append_column(name, array(values, kind) if values else pa.nulls(size, kind))
    return table.cast(ROWS)


def _described(
    table: pa.Table, facts: Sequence[Listed]
) -> tuple[list[list[str] | None], list[str | None]]:
    captions: list[list[str] | None] = []
    columns: list[str | None] = []
    for number, location in zip(
        table["source"].to_pylist(), table["location"].to_pylist(), strict=True
    ):
        names = names_of(decode_path(location))
        fact = facts[number]
        captions.append(next(filter(None, map(fact.captions.get, names)), None))
        values = next(filter(None, map(fact.columns.get, names)), None)
        columns.append(json.dumps(values, sort_keys=True, ensure_ascii=False) if values else None)
    return captions, columns


def _unique(table: pa.Table) -> pa.Array:
    """Return the keys, a short hash of its place added to each that another picture has before it.

    Equal keys stand together, since their order is the same.
    """
    keys = table["key"].combine_chunks()
    if len(keys) < 2:
        return keys
    same = np.concatenate([[False], as_numpy(pc.equal(keys[1:], keys[:-1]))])
    if not same.any():
        return keys
    values = keys.to_pylist()
    for row in np.flatnonzero(same).tolist():
        place = [table[name][row].as_py() for name in ("source", "location", "offset")]
        values[row] += "-" + hashlib.blake2b(repr(place).encode(), digest_size=4).hexdigest()
    return array(values, pa.string())


def _classes(facts: Sequence[Listed], makers: Any) -> list[str]:
    known = [fact.classes for fact in facts if fact.classes]
    found = set().union(*(maker.labels for maker in makers))
    first = known[0] if known else ()
    return [*first, *sorted(found - set(first))]


def _with(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)
