"""The manifest of a split, `SPLIT.json`: which shards there are, and what they must hold.

It is written last, so a split is complete exactly when its manifest is there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.common.digests import json_sha256
from shards.errors import ShardsError
from shards.store import Store

FORMAT = 1

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


@dataclass(frozen=True)
class Manifest:
    """What `SPLIT.json` says. `listed` = `samples` + `rejected`, always.

    Where an augmentation cuts several crops of each picture, `samples` counts the crops.
    """

    split: str
    seed: int
    options: dict[str, Any]
    source_digest: str
    shards: tuple[ShardInfo, ...]
    samples: int
    listed: int
    rejected: int
    reasons: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    created_with: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each shard, in order."""
        return [shard.samples for shard in self.shards]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what the shards hold: the same wherever and whenever they were made."""
        what = asdict(self)
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
        return cls.from_json(text, where=store.where(name))

    @classmethod
    def from_json(cls, text: bytes | str, where: str = "manifest") -> Manifest:
        """Return the manifest that `text` describes; `where` names it in errors."""
        try:
            given = json.loads(text)
            version = given["format"]
            if version != FORMAT:
                raise ShardsError(
                    f"{where} has format {version}, this version reads {FORMAT}: "
                    "install the version that wrote it, or make the shards again"
                )
            given["shards"] = tuple(ShardInfo(**shard) for shard in given["shards"])
            given["classes"] = tuple(given.get("classes", ()))
            known = {one.name for one in fields(cls)}
            return cls(**{name: value for name, value in given.items() if name in known})
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError):
            raise ShardsError(
                f"{where} is not a manifest of shards, or is damaged: "
                "name a folder that `pipeline shard` wrote, or make the shards again"
            ) from None

    def to_json(self) -> str:
        """Return the text of `SPLIT.json`: the fields, and the digest by which an edit shows."""
        return json.dumps({**asdict(self), "digest": self.digest}, indent=1, sort_keys=True) + "\n"

    def write(self, dest: str | Path) -> None:
        """Write `SPLIT.json` into `dest` whole."""
        Store(dest).write(self.file_name(self.split), self.to_json().encode())


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
