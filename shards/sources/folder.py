"""A folder of pictures, listed by several threads."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from shards.errors import ShardsError
from shards.sources.base import (
    ChangedError,
    ClassFolders,
    Entry,
    GoneError,
    Listed,
    Part,
    Rows,
    Sample,
    UnreadableError,
    clean_text,
    decode_path,
    encode_path,
)
from shards.sources.captions import is_description, read_descriptions
from shards.sources.files import Archives, PartReader, SourceFile, add_files, left_out, read_parts

THREADS = 8
PLAN = re.compile(r"\.([^.]+)\.plan\.json")
TOGETHER = 32  # folders that a thread lists in one go
Scanned = tuple[list[SourceFile], list[str]]  # files, and paths of folders


@dataclass(frozen=True)
class FolderSource:
    """All pictures under `root`; files of the same stem (.json, .txt, .cls) travel with them."""

    root: str

    @property
    def name(self) -> str:
        """The folder's own name."""
        return clean_text(Path(self.root).resolve().name)

    @property
    def origin(self) -> str:
        """The folder's path."""
        return self.root

    def collect(self, rows: Rows) -> Listed:
        """Add the pictures under the root."""
        return collect_files(rows, scan(partial(_scan_some, Path(self.root))), self.reader())

    def reader(self) -> FolderReader:
        """Open the folder for reading."""
        return FolderReader(self.root)


class FolderReader:
    """Reads files under a root."""

    def __init__(self, root: str) -> None:
        self.root = root

    def read(self, entry: Entry) -> Sample:
        """Return the file's bytes and those of its siblings."""
        return read_parts(self, entry)

    def close(self) -> None:
        """Nothing is held open."""

    def part(self, part: Part) -> bytes:
        """Return the bytes of one file; raises UnreadableError, or ShardsError if it changed."""
        path = os.path.join(self.root, decode_path(part.location))  # noqa: PTH118 - hot path
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                data = file.read()
        except FileNotFoundError:
            # A folder that lost all its files is a disk that went away, not a picture.
            kind = GoneError if _holds_anything(os.path.dirname(path)) else ShardsError  # noqa: PTH120
            raise kind(changed(path, "is gone")) from None
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from None
        if len(data) != part.size:
            raise ChangedError(path, part.size, len(data))
        return data


def collect_files(
    rows: Rows, scanned: Iterable[Sequence[SourceFile]], reader: PartReader
) -> Listed:
    """Add the pictures among the files of a folder; return what is known of it then."""
    classes, left, ignored = ClassFolders(), [], 0
    notes: tuple[str, ...] = ()
    archives = Archives()
    for files in scanned:
        others = add_files(rows, files, classes)
        archives.take(file for file in others if not is_description(file.path))
        left += [file for file in others if is_description(file.path)]
        notes += left_out(file for file in others if not is_description(file.path))
        ignored += len(others)
    found = read_descriptions(left, lambda file: reader.part(file.part))
    return Listed(
        ignored - len(left) + len(found.left),
        bool(classes),
        captions=found.captions,
        columns=found.columns,
        notes=notes + found.notes + archives.notes(),
        named=found.named,
    )


def _holds_anything(folder: str) -> bool:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return any(entries)
    return False


def changed(path: str, how: str) -> str:
    """Return the sentence for a source that changed between listing and reading."""
    return f"the source changed while it was read: {path} {how}"


def scan(look: Callable[[Sequence[str]], Scanned]) -> Iterator[list[SourceFile]]:
    """Yield the files under a root, those of some folders at a time, in any order.

    `look` returns what is in some folders, given by their paths from the root.
    """
    ready: SimpleQueue[Future[Scanned]] = SimpleQueue()
    waiting, busy = [""], 0
    with ThreadPoolExecutor(THREADS) as pool:
        while waiting or busy:
            while waiting and busy < 2 * THREADS:  # more would only fill the memory
                some = waiting[-TOGETHER:]
                del waiting[-TOGETHER:]
                pool.submit(look, some).add_done_callback(ready.put)
                busy += 1
            files, folders = ready.get().result()
            busy -= 1
            waiting += folders
            yield files


def _scan_some(root: Path, folders: Sequence[str]) -> Scanned:
    """Return the files and folders in some folders under `root`.

    Links to files are followed; links to folders too, but never to a folder above.

    Raises:
        ShardsError: a folder cannot be read.
    """
    files: list[SourceFile] = []
    below: list[str] = []
    for folder in folders:
        try:
            with os.scandir(root / folder) as scanned:
                entries = {entry.name: entry for entry in scanned}
            kept = (entries[name] for name in without_shards(entries))
            found, more = _sort_out(root, f"{folder}/" if folder else "", kept)
        except OSError as error:
            raise ShardsError(f"cannot read folder {root / folder}: {error.strerror}") from error
        files += found
        below += more
    return files, below


def _sort_out(root: Path, prefix: str, entries: Iterable[os.DirEntry[str]]) -> Scanned:
    files: list[SourceFile] = []
    folders: list[str] = []
    for entry in entries:
        path = prefix + entry.name
        if entry.is_dir():
            if not (entry.is_symlink() and _leads_up(root / path)):
                folders.append(path)
            continue
        try:
            status = entry.stat()
        except FileNotFoundError:  # a dangling link: named, but not there
            files.append(SourceFile(path, Part(encode_path(path), 0, -1), 0))
        else:
            # A pipe or a device has no contents to list; opening one would wait for ever.
            size = status.st_size if stat.S_ISREG(status.st_mode) else -1
            files.append(SourceFile(path, Part(encode_path(path), 0, size), status.st_mtime_ns))
    return files, folders


def without_shards(names: Collection[str]) -> Collection[str]:
    """Return the names of a folder's files without those of splits that were planned in it.

    A source may contain its destination: what was made of it is no part of it.
    """
    plans = [match for name in names if (match := PLAN.fullmatch(name))]
    if not plans:
        return names
    splits = "|".join(re.escape(match[1]) for match in plans)
    made = re.compile(
        rf"\.({splits})\..+|({splits})(-\d{{6}}\.(tar|parquet)|(\.rejects|\.shards)\.parquet|\.json)"
    )
    return {name for name in names if not made.fullmatch(name)}


def _leads_up(link: Path) -> bool:
    return link.parent.resolve().is_relative_to(link.resolve())
