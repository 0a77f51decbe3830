"""The index of a WebDataset tar that has no sidecar: made by a walk over its headers, and kept."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from pipeline.common.atomic import writing
from pipeline.common.pictures.formats import ENDINGS
from shards.errors import ShardsError
from shards.reading.index import STAMP, ShardTable, read_table
from shards.sources.tarwalk import DamagedTarError, followed, plain, target, walk

# The version of the walk: a stored table of an older version is made anew.
WALK = "walk 2"
# WebDataset's rule: the key is all before the first dot of the file's name, its folders included.
MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")


def tar_table(tar: IO[bytes], where: str) -> ShardTable:
    """Return the first picture of every sample of the open tar, in order.

    Members follow WebDataset: those of one sample stand together and share a key; a picture is a
    member with a picture's ending. Samples without a picture are left out.

    Raises:
        ShardsError: not a tar; `where` names it.
    """
    import pyarrow as pa

    from shards.arrays import array

    keys: list[str] = []
    places: list[tuple[int, int]] = []
    for name, place in _members(tar, where):
        match = MEMBER.fullmatch(name)
        if match is None:
            continue
        picture = match[2].lower().rpartition(".")[2] in ENDINGS
        if picture and not (keys and keys[-1] == match[1]):
            keys.append(match[1])
            places.append(place)
    numbers = np.asarray(places, dtype=np.int64).reshape(-1, 2)
    return ShardTable(array(keys, pa.string()), numbers[:, 0].copy(), numbers[:, 1].copy())


def _members(tar: IO[bytes], where: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name, offset and size of each file of the tar; a link's are those it leads to."""
    names: list[str] = []
    places: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        for member in walk(tar):
            if member.is_link:
                links[plain(member.name)] = target(member)
            elif member.sparse:
                raise ShardsError(
                    f"{where}: its member {member.name} is sparse, which cannot be read in place: "
                    "make shards of it with `pipeline shard shards:...`"
                )
            elif member.is_file:
                places[plain(member.name)] = (member.offset_data, member.size)
            else:
                continue
            names.append(member.name)
    except DamagedTarError as error:
        raise ShardsError(f"{where} is not a whole tar ({error}): get or make it again") from error
    for name in names:
        place = places.get(followed(links, plain(name)))
        if place is not None:
            yield name, place


def kept(
    path: Path, stamp: str, make: Callable[[], ShardTable], digests: bool = False
) -> ShardTable:
    """Return the table in file `path`; if it has none for `stamp`, make one and store it."""
    stamp = f"{stamp} {WALK}"
    with contextlib.suppress(OSError, ShardsError):
        return read_table(path.read_bytes(), str(path), stamp, digests)
    table = make()
    with contextlib.suppress(OSError):  # without room or permission it is made again next time
        write_table(table, path, stamp)
    return table


def write_table(table: ShardTable, path: Path, stamp: str) -> None:
    """Keep a table in file `path`; `stamp` says which tar it is of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from shards.arrays import numbers

    columns = {
        "key": table.keys,
        "offset": numbers(table.offsets),
        "size": numbers(table.sizes),
    }
    if table.digests is not None:
        columns["sha256"] = table.digests
    made = pa.Table.from_arrays(list(columns.values()), list(columns))
    with writing(path) as file:
        pq.write_table(made.replace_schema_metadata({STAMP: stamp}), file)
