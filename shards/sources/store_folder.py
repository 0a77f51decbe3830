"""A folder of pictures on a store, listed and read through fsspec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from shards.errors import ShardsError
from shards.sources.base import (
    ChangedError,
    Entry,
    GoneError,
    Listed,
    Part,
    Rows,
    Sample,
    clean_text,
    decode_path,
    encode_path,
)
from shards.sources.files import SourceFile, read_parts
from shards.sources.folder import Scanned, changed, collect_files, scan, without_shards
from shards.sources.places import time_of
from shards.store import remote, retried


@dataclass(frozen=True)
class StoreFolder:
    """All pictures under the URL `root`; files of the same stem travel with them."""

    root: str

    @property
    def name(self) -> str:
        """The folder's own name."""
        return clean_text(self.root.rstrip("/").rpartition("/")[2])

    @property
    def origin(self) -> str:
        """The folder's URL."""
        return self.root

    def collect(self, rows: Rows) -> Listed:
        """Add the pictures under the root."""
        return collect_files(rows, scan(self._look), self.reader())

    def reader(self) -> StoreFolderReader:
        """Open the folder for reading."""
        return StoreFolderReader(self.root)

    def _look(self, folders: Sequence[str]) -> Scanned:
        fs = remote(self.root)
        files: list[SourceFile] = []
        below: list[str] = []
        for folder in folders:
            url = f"{self.root.rstrip('/')}/{folder}".rstrip("/")
            found = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in _ls(fs, url)}
            prefix = f"{folder}/" if folder else ""
            for name in without_shards(found):
                entry = found[name]
                if entry["type"] == "directory":
                    below.append(prefix + name)
                else:
                    place = Part(encode_path(prefix + name), 0, int(entry.get("size") or 0))
                    files.append(SourceFile(prefix + name, place, time_of(entry)))
        return files, below


class StoreFolderReader:
    """Reads files under a URL."""

    def __init__(self, root: str) -> None:
        self._root, self._fs = root.rstrip("/"), remote(root)

    def read(self, entry: Entry) -> Sample:
        """Return the file's bytes and those of its siblings."""
        return read_parts(self, entry)

    def part(self, part: Part) -> bytes:
        """Return the bytes of one file; raises UnreadableError, or ShardsError if it changed."""
        url = f"{self._root}/{decode_path(part.location)}"
        return read_object(self._fs, url, part.size, self._root)

    def close(self) -> None:
        """Nothing is held open."""


def read_object(fs: Any, url: str, size: int, root: str) -> bytes:
    """Return the `size` bytes of the file at `url`.

    Raises:
        GoneError, ChangedError: the file is gone, or has another size.
        ShardsError: so is `root`, which is no picture's fault; or the store refuses access.
    """
    try:
        data = retried(lambda: cast(bytes, fs.cat_file(url)), url)
    except FileNotFoundError:
        kind = GoneError if retried(lambda: fs.exists(root), root) else ShardsError
        raise kind(changed(url, "is gone")) from None
    if len(data) != size:
        raise ChangedError(url, size, len(data))
    return data


def _ls(fs: Any, url: str) -> list[dict[str, Any]]:
    """Return what is directly in a folder, without the empty object that stands for it."""
    try:
        entries = retried(lambda: cast(list[dict[str, Any]], fs.ls(url, detail=True)), url)
    except FileNotFoundError:
        raise ShardsError(changed(url, "is gone")) from None
    own = fs._strip_protocol(url).rstrip("/")
    return [entry for entry in entries if entry["name"].rstrip("/") != own]
