"""Makes one shard: a pure function of its rows of the plan, the options and the pictures' bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common.documents import parse
from pipeline.common.pictures import PictureError
from pipeline.common.pictures.limits import check_bytes
from shards import arrays
from shards.making.inorder import in_order
from shards.making.members import BLANK
from shards.making.partial import partial_file, settle
from shards.making.plan import check_planned
from shards.making.stage_times import Spent
from shards.making.tar import TarFile
from shards.manifest import ShardInfo, shard_name
from shards.options import Options
from shards.samples import check
from shards.samples.check import Facts, RejectedError, examine
from shards.samples.sample import SIDECAR, Ready, reject_row
from shards.sources import Entry, Reader, Sample, Source, UnreadableError, reading_threads
from shards.sources.base import ChangedError, GoneError, decode_path, stem_and_ending
from shards.sources.values import json_value
from shards.store import Store

if TYPE_CHECKING:
    from shards.making.augmenting import Augmenting


@dataclass(frozen=True)
class Form:
    """Settings that all samples of a split share: see `shards.making.plan.Plan`."""

    classes: Mapping[str, int] = field(default_factory=dict)
    ending: str = ""
    members: Sequence[str] = ()


@dataclass(frozen=True)
class Context:
    """Settings that all shards of a split share.

    `servers` are addresses of processes that augment; `plan` is the plan's identity ("": nobody
    planned).
    """

    split: str
    store: Store
    sources: Sequence[Source]
    options: Options
    form: Form = field(default_factory=Form)
    servers: Sequence[str] = ()
    plan: str = ""


@dataclass
class ShardMaker:
    """Makes shards of one split, one after the other, with one set of open sources.

    `on_picture` is called after each with (bytes written or refused, its samples: 0 of a reject).
    """

    context: Context
    on_picture: Callable[[int, int], None] = lambda size, samples: None
    _readers: dict[int, Reader] = field(default_factory=dict)
    _augmenting: Augmenting | None = None

    def make(self, number: int, rows: pa.Table, threads: int = 1) -> ShardInfo:
        """Write shard `number` from its rows of the plan: the tar, then the sidecar that counts.

        Raises:
            ShardsError: the source changed since it was listed, or the split was planned anew.
            ShardsRuntimeError: the disk is full, or the store does not answer.
        """
        name = shard_name(self.context.split, number)
        table: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        with partial_file(self.context.store, f"{name}.tar") as partial:
            tar = TarFile(partial.file)
            threads = max(threads, reading_threads(self.context.sources))
            for group in self._groups(number, rows.to_pylist(), threads):
                ready = [one for one in group if isinstance(one, Ready)]
                table += [tar.add(one) for one in ready]
                refused = [one for one in group if not isinstance(one, Ready)]
                rejects += refused
                size = sum(len(one.picture) for one in ready)
                self.on_picture(size + sum(one["size"] for one in refused), len(ready))
            info = tar.finish(name, len(table))
            self._check_planned()
            settle(self.context.store, partial, info.tar, more_follows=True)
        self._write_sidecar(info, table, rejects)
        return info

    def close(self) -> None:
        """Close the sources."""
        while self._readers:
            self._readers.popitem()[1].close()
        if self._augmenting is not None:
            self._augmenting.close()

    def spent(self) -> Spent:
        """Return the time that augmenting took since the last call."""
        return self._augmenting.clock.taken() if self._augmenting is not None else Spent()

    def _write_sidecar(
        self, info: ShardInfo, table: list[dict[str, Any]], rejects: list[dict[str, Any]]
    ) -> None:
        facts = {"samples": info.samples, "bytes": info.bytes, "sha256": info.sha256}
        said = {"shard": json.dumps(facts), "rejects": json.dumps(rejects)}
        schema = SIDECAR.with_metadata({**said, "plan": self.context.plan})
        with partial_file(self.context.store, info.sidecar) as partial:
            content = arrays.table(table, schema)
            pq.write_table(content, partial.file, compression="zstd")
            self._check_planned()
            settle(self.context.store, partial, info.sidecar)

    def _check_planned(self) -> None:
        if self.context.plan:
            check_planned(self.context.store, self.context.split, self.context.plan)

    def _groups(
        self, number: int, rows: Iterable[dict[str, Any]], threads: int
    ) -> Iterator[list[Ready | dict[str, Any]]]:
        """Yield, for each row of the plan, in order, the samples of its picture or its reject."""
        if self.context.options.augment is None:
            yield from ([one] for one in in_order(self.prepare, rows, threads))
            return
        if self._augmenting is None:
            from shards.making.augmenting import Augmenting  # not where nothing is augmented

            self._augmenting = Augmenting(self.context.options, self.context.servers)
        yield from self._augmenting.groups(number, self.prepare, rows, threads)

    def prepare(self, row: dict[str, Any]) -> Ready | dict[str, Any]:
        """Return the sample of a row of the plan, or the row of its reject."""
        entry = Entry.from_row(row)
        place = decode_path(row["location"]).encode(errors="replace").decode()
        origin = f"{self._names[row['source']]}/{place}"
        try:
            if row["duplicate"] is not None:
                kind, _, first = row["duplicate"].partition(" ")
                raise RejectedError(check.DUPLICATES[kind], f"of {first}")
            if entry.picture.size < 0:
                raise RejectedError(check.MISSING, "the path leads to no file")
            check_bytes(entry.picture.size)
            sample = self._reader(row["source"]).read(entry)
            options = self.context.options
            decoded = options.augment is not None
            facts = examine(sample.data, options, _ending(row["location"]), decoded)
        except UnreadableError as error:
            problem = RejectedError(_reason(error), error.detail)
        except PictureError as error:
            problem = RejectedError(str(error.refusal), error.detail)
        except RejectedError as error:
            problem = error
        else:
            return self._ready(row, origin, sample, facts)
        size = max(entry.picture.size, 0)
        return reject_row(entry.key, origin, problem.reason, problem.detail, size)

    def _ready(self, row: dict[str, Any], origin: str, sample: Sample, facts: Facts) -> Ready:
        member = {
            "key": row["key"],
            "size": len(sample.data),
            "width": facts.width,
            "height": facts.height,
            "format": facts.format,
            "sha256": hashlib.sha256(sample.data).hexdigest(),
            "source": origin,
            "mode": facts.mode,
            "orientation": facts.orientation,
            "label": row["label"],
            "origin_sha256": None,
        }
        form = self.context.form
        others = describe(row, sample, form.classes)
        blank = {name: BLANK[name] for name in form.members}
        return Ready(member, form.ending or facts.ending, sample.data, {**blank, **others})

    @cached_property
    def _names(self) -> list[str]:
        return [source.name for source in self.context.sources]

    def _reader(self, number: int) -> Reader:
        reader = self._readers.get(number)
        if reader is None:
            # If two threads come here at once, both use the reader that was stored first.
            reader = self._readers.setdefault(number, self.context.sources[number].reader())
        return reader


def describe(row: dict[str, Any], sample: Sample, classes: Mapping[str, int]) -> dict[str, bytes]:
    """Return the members beside the picture, by ending: what the source has, and what is known.

    A label gives `cls` (its number) and JSON `label`; captions give `txt` (one a line) and JSON
    `captions`; further columns go to the JSON. What the source has already stays as it is.
    """
    members = dict(sample.fields)
    known: dict[str, Any] = dict(sample.meta)
    if row["columns"] is not None:
        known |= parse(row["columns"])
    if row["label"] is not None:
        known["label"] = row["label"]
        members.setdefault("cls", str(classes[row["label"]]).encode())
    if row["captions"] is not None:
        known["captions"] = row["captions"]
        members.setdefault("txt", "\n".join(row["captions"]).encode())
    if known:
        members["json"] = _merged(members.get("json"), known)
    return members


def _merged(text: bytes | None, known: dict[str, Any]) -> bytes:
    """Return JSON of `known` and of the source's own JSON `text`, which wins."""
    try:
        own = parse(text) if text else {}
    except ValueError:
        own = None
    if not isinstance(own, dict):
        return text or b""
    if text and all(own.get(name) == value for name, value in known.items()):
        return text
    merged = json_value({**known, **own})
    return json.dumps(merged, sort_keys=True, ensure_ascii=False).encode()


def _reason(error: UnreadableError) -> str:
    known = {GoneError: check.MISSING, ChangedError: check.CHANGED}
    return known.get(type(error), check.UNREADABLE)


def _ending(location: bytes) -> str:
    return stem_and_ending(decode_path(location))[1]
