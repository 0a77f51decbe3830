"""The manifest of a split, `SPLIT.json`: which shards there are, and what they must hold.

It is written last, so a split is complete exactly when its manifest is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.digests import json_sha256
from pipeline.common.documents import parse
from shards import shard_table
from shards.errors import ShardsError
from shards.shard_table import ShardInfo, StoredShards, shards_digest, shards_file, table_of
from shards.store import Store

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Manifest", "ShardInfo"]

FORMAT = 1

# The shards are in a table of their own.
TABLE_FORMAT = 2

# Columns of a shard's sidecar `SPLIT-000000.parquet`, a row a sample in the tar's order.
# `offset` and `size` locate the picture's bytes inside the tar.
COLUMNS = (
    "key",
    "member",
    "offset",
    "size",
    "width",
    "height",
    "format",
    "sha256",
    "source",
)


def shard_name(split: str, number: int) -> str:
    """Return the name, without suffix, of shard `number`: `train-000012`."""
    return f"{split}-{number:06d}"


@dataclass(frozen=True)
class Manifest:
    """What `SPLIT.json` says. `listed` = `samples` + `rejected`, always.

    Where an augmentation cuts several crops of each picture, `samples` counts the crops.
    """

    split: str
    seed: int
    options: dict[str, Any]
    source_digest: str
    shards: Sequence[ShardInfo]
    samples: int
    listed: int
    rejected: int
    reasons: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    created_with: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def sizes(self) -> Sequence[int] | npt.NDArray[np.int64]:
        """The number of samples in each shard, in order."""
        if isinstance(self.shards, StoredShards):
            return self.shards.samples
        return [shard.samples for shard in self.shards]

    @property
    def byte_sizes(self) -> Sequence[int] | npt.NDArray[np.int64]:
        """The number of bytes of each tar, in order."""
        if isinstance(self.shards, StoredShards):
            return self.shards.column("bytes")
        return [shard.bytes for shard in self.shards]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what the shards hold: the same wherever and whenever they were made."""
        what = self._said()
        del what["created_with"]
        return json_sha256(what)

    @staticmethod
    def file_name(split: str) -> str:
        """Return the manifest's file name."""
        return f"{split}.json"

    @classmethod
    def read(cls, dest: str | Path, split: str = "train") -> Manifest:
        """Return the manifest of `split` in `dest`, a folder or any fsspec URL.

        Raises:
            ShardsError: there is none, or it is not a manifest of ours.
        """
        store = Store(dest)
        name = cls.file_name(split)
        try:
            text = store.read(name)
        except (FileNotFoundError, NotADirectoryError):
            raise ShardsError(_missing(store, split)) from None
        return cls.from_json(text, where=store.where(name), store=store)

    @classmethod
    def from_json(
        cls, text: bytes | str, where: str = "manifest", store: Store | None = None
    ) -> Manifest:
        """Return the manifest that `text` describes; `where` names it in errors.

        `store` has the table of its shards, where there is one.
        """
        from shards.manifest_form import mistake  # which takes a third of a second to import

        try:
            given = parse(text)
            version = given["format"]
            if version not in (FORMAT, TABLE_FORMAT):
                raise ShardsError(
                    f"{where} has format {version}, this version reads up to {TABLE_FORMAT}: "
                    "install the version that wrote it, or make the shards again"
                )
            wrong = mistake(given)
            if wrong is not None:
                raise ValueError(wrong)
            if version == TABLE_FORMAT:
                given["shards"] = _stored(given["shards"], store, where)
            else:
                given["shards"] = tuple(ShardInfo(**shard) for shard in given["shards"])
            given["classes"] = tuple(given.get("classes", ()))
            known = {one.name for one in fields(cls)}
            return cls(**{name: value for name, value in given.items() if name in known})
        except ShardsError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            about = f" ({error})" if isinstance(error, ValueError) else ""
            raise ShardsError(
                f"{where} is not a manifest of shards, or is damaged{about}: "
                "name a folder that `pipeline shard` wrote, or make the shards again"
            ) from None

    def to_json(self) -> str:
        """Return the text of `SPLIT.json`: the fields, and the digest by which an edit shows."""
        return json.dumps({**self._said(), "digest": self.digest}, indent=1, sort_keys=True) + "\n"

    def write(self, dest: str | Path | Store) -> None:
        """Write `SPLIT.json` into `dest` whole, and before it the table of very many shards."""
        store = dest if isinstance(dest, Store) else Store(dest)
        if self._has_table:
            store.write(shards_file(self.split), table_of(self.shards))
        store.write(self.file_name(self.split), self.to_json().encode())

    @property
    def _has_table(self) -> bool:
        return len(self.shards) > shard_table.MANY or isinstance(self.shards, StoredShards)

    def _said(self) -> dict[str, Any]:
        """Return what `SPLIT.json` says but its digest."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        if self._has_table:
            table = shards_file(self.split)
            said["shards"] = {
                "file": table,
                "count": len(self.shards),
                "sha256": shards_digest(self.shards),
            }
            said["format"] = TABLE_FORMAT
        else:
            said["shards"] = [asdict(one) for one in self.shards]
        return said


def _stored(said: dict[str, Any], store: Store | None, where: str) -> StoredShards:
    """Return the shards in the table that a manifest names."""
    import pyarrow as pa

    name = str(said["file"])
    if store is None or "/" in name:
        raise KeyError(name)
    try:
        shards = StoredShards(partial(store.open, name), str(said["sha256"]))
    except (OSError, pa.ArrowException) as error:
        raise ShardsError(
            f"{store.where(name)}, the table of the shards of {where}, is missing or damaged: "
            "get it again, or make the shards again"
        ) from error
    if len(shards) != said["count"]:
        raise ShardsError(
            f"{store.where(name)} has {len(shards)} shards, {where} says {said['count']}: "
            "get both again"
        )
    return shards


def splits(store: Store) -> list[str]:
    """Return the splits that have a manifest in `store`, sorted."""
    names = store.names()
    return sorted(
        name.removesuffix(".json")
        for name in names
        if name.endswith(".json") and not name.startswith(".")
    )


def _missing(store: Store, split: str) -> str:
    if f".{split}.plan.json" in store.names():
        return (
            f"{store} holds shards of split {split!r} that were never finished: "
            "run the same `pipeline shard` command again"
        )
    there = ", ".join(splits(store))
    hint = f"it has {there}" if there else "make shards with `pipeline shard SOURCE --out DEST`"
    return f"{store} has no manifest {split}.json: {hint}"
