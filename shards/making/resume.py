"""Checks, before work goes on, that options and source are the same as before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ShardsError
from shards.making.plan import Plan, PlanRows
from shards.manifest import Manifest, shard_name
from shards.options import Options
from shards.sources import Entry, Source, UnreadableError
from shards.store import Store
from shards.tables import read_rows

SHOWN = 3
ROWS_DIGITS = 32  # of a corpus's digest: the others are of what describes its pictures
WAYS_OUT = "give the same as before, another --out, or --fresh to start anew"


def check_foreign(store: Store, split: str, names: Collection[str]) -> None:
    """Refuse a destination that has files of `split` and no plan for them.

    Raises:
        ShardsError: there are such files.
    """
    ours = re.compile(rf"{re.escape(split)}(-\d{{6}}\.(tar|parquet)|\.json)")
    found = sorted(name for name in names if ours.fullmatch(name))
    if found:
        raise ShardsError(
            f"{store} already holds {found[0]}, and no plan says what it was made from: "
            "name another --out, or add --fresh to start anew"
        )


def check_options(store: Store, plan: Plan, options: Options) -> None:
    """Refuse to go on with other options than those of `plan`.

    Raises:
        ShardsError: names each difference.
    """
    differences = options.difference(plan.options)
    if differences:
        raise ShardsError(
            f"{store} holds split {plan.split!r} made with other options: "
            f"{'; '.join(differences)}; {WAYS_OUT}"
        )


def check_source(
    store: Store, plan: Plan, digest: str, rows: tuple[PlanRows, PlanRows], unfinished: bool
) -> str:
    """Refuse to go on with a source whose pictures or descriptions are not those of `plan`.

    Args:
        store: the destination, for messages.
        plan: what was planned.
        digest: that of the source now.
        rows: the plan's rows, and those that the source gives now.
        unfinished: whether shards are missing: then pictures may be gone, since those that are
            not in a shard yet become rejects.

    Returns:
        A sentence on the pictures that are gone.

    Raises:
        ShardsError: counts what differs, and names a few.
    """
    before, now = rows
    old, new = _sizes(before), _sizes(now)
    groups = {
        "new": sorted(new.keys() - old.keys()),
        "gone": sorted(old.keys() - new.keys()),
        "of another size": sorted(key for key in old.keys() & new.keys() if old[key] != new[key]),
    }
    gone = groups["gone"]
    described_alike = plan.source_digest[ROWS_DIGITS:] == digest[ROWS_DIGITS:]
    if unfinished and described_alike and gone and not (groups["new"] or groups["of another size"]):
        return (
            f"{len(gone)} pictures are gone since the source was listed ({_few(gone)}): "
            "those that no finished shard holds are rejected as missing"
        )
    phrases = [f"{len(keys)} {how} ({_few(keys)})" for how, keys in groups.items() if keys]
    what = f"pictures: {', '.join(phrases)}" if phrases else "captions, labels or columns changed"
    raise ShardsError(f"{store} holds split {plan.split!r} of another source: {what}; {WAYS_OUT}")


def check_contents(
    store: Store,
    split: str,
    before: PlanRows,
    now: PlanRows,
    done: Collection[int],
    sources: Sequence[Source],
    crops: int = 1,
) -> None:
    """Refuse to go on when a picture in a finished shard has other bytes now.

    Only pictures whose time of change differs from the plan's are read.

    Raises:
        ShardsError: names the first that differs.
    """
    readers = [source.reader() for source in sources]
    try:
        for number in sorted(done):
            hashes = _hashes(store, shard_name(split, number))
            suffix = "_0" if crops > 1 else ""
            for row_before, row in zip(_rows(before, number), _rows(now, number), strict=True):
                key = row["key"] + suffix
                if row["mtime"] == row_before["mtime"] or key not in hashes:
                    continue
                data = readers[row["source"]].read(Entry.from_row(row)).data
                if hashlib.sha256(data).hexdigest() != hashes[key]:
                    raise ShardsError(
                        f"{store} holds split {split!r} of another source: "
                        f"picture {row['key']} changed; {WAYS_OUT}"
                    )
    except UnreadableError as error:
        raise ShardsError(f"a picture that was read before cannot be read now: {error}") from error
    finally:
        for reader in readers:
            reader.close()


def clear(store: Store, split: str) -> None:
    """Remove everything of `split`, the manifest first."""
    ours = re.compile(rf"{re.escape(split)}-\d{{6}}\.(tar|parquet)")
    names = store.names()
    first = [Manifest.file_name(split), Plan.file_name(split)]
    rest = [name for name in names if ours.fullmatch(name) or name.startswith(f".{split}.")]
    for name in [*first, f"{split}.rejects.parquet", *rest]:
        if name in names:
            store.remove(name)


def _rows(rows: PlanRows, number: int) -> Iterator[dict[str, Any]]:
    yield from rows.shard(number).to_pylist()


def _hashes(store: Store, name: str) -> dict[str, str]:
    file: IO[bytes]
    with store.open(f"{name}.parquet") as file:
        try:
            table = read_rows(file, ["key", "sha256", "origin_sha256"])
        except pa.ArrowException as error:
            raise ShardsError(
                f"{store.where(f'{name}.parquet')} is damaged: delete it and run the same command"
                " again"
            ) from error
    hashes = pc.coalesce(table["origin_sha256"], table["sha256"])
    return dict(zip(table["key"].to_pylist(), hashes.to_pylist(), strict=True))


def _sizes(rows: PlanRows) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for _, table in rows.columns(["key", "size"]):
        sizes.update(zip(table["key"].to_pylist(), table["size"].to_pylist(), strict=True))
    return sizes


def _few(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
