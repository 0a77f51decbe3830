"""Turns the files that a folder or an archive holds into rows: pictures with what lies beside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from pipeline.common.pictures.formats import ENDINGS
from shards.sources.base import (
    MAX_SIDECAR,
    SIDECARS,
    ClassFolders,
    Entry,
    Part,
    Rows,
    Sample,
    UnreadableError,
    clean_key,
    clean_text,
    is_hidden,
    stem_and_ending,
)
from shards.sources.packed import ENDINGS as PACKED

# Endings of archives, which hold pictures that nobody sees where they are not entered.
ARCHIVES = (".tar", *PACKED, ".zip", ".7z", ".rar", ".parquet", ".arrow", ".tfrecord")


class SourceFile(NamedTuple):
    """A file: its path as a user sees it, where its bytes are, and its time of change (ns)."""

    path: str
    part: Part
    mtime: int


class PartReader(Protocol):
    """Reads the bytes of one file of an archive or a folder."""

    def part(self, part: Part) -> bytes:
        """Return the bytes; raises UnreadableError if they cannot be had."""

    def close(self) -> None:
        """Give back what was opened."""


def read_parts(reader: PartReader, entry: Entry) -> Sample:
    """Return the picture of `entry` and what lies beside it.

    Raises:
        UnreadableError: one of them cannot be had; of those beside, the message says which.
        ShardsError: the source changed.
    """
    fields = {}
    for ending, part in entry.siblings:
        try:
            fields[ending] = reader.part(part)
        except UnreadableError as error:
            raise UnreadableError(f"the .{ending} beside it: {error.detail}") from None
    return Sample(reader.part(entry.picture), fields)


def add_files(rows: Rows, files: Iterable[SourceFile], classes: ClassFolders) -> list[SourceFile]:
    """Add the pictures among `files` to `rows`; return the files that were left aside.

    Files of the same stem as a picture (.json, .txt, .cls) travel with it.
    """
    split = [(file, *stem_and_ending(file.path)) for file in files]
    beside: dict[str, list[tuple[str, Part]]] = {}
    for file, stem, ending in split:
        if ending in SIDECARS and travels(file.part):
            beside.setdefault(stem, []).append((ending, file.part))
    left, taken = [], set()
    for file, stem, ending in split:
        if ending not in ENDINGS or is_hidden(file.path):
            left.append(file)
            continue
        siblings = beside.get(stem, ())
        if siblings:
            taken.add(stem)
        label = classes.label(file.path, described=bool(siblings))
        rows.add(clean_key(stem), file.part, mtime=file.mtime, label=label, siblings=siblings)
    if not beside:
        return left
    return [file for file in left if not (travels(file.part) and _beside(file.path, taken))]


def add_samples(rows: Rows, files: Iterable[SourceFile]) -> list[SourceFile]:
    """Add the samples of a WebDataset shard to `rows`; return the files that were left aside.

    A sample is all members whose paths agree up to the first dot of the name; its picture is the
    first member with a picture's ending, and all others travel with it.
    """
    samples: dict[str, list[tuple[str, SourceFile]]] = {}
    for file in files:
        folder, slash, name = file.path.rpartition("/")
        stem, dot, ending = name.partition(".")
        if dot and stem:
            samples.setdefault(folder + slash + stem, []).append((ending.lower(), file))
    left: list[SourceFile] = []
    for stem, members in samples.items():
        pictures = [file for ending, file in members if ending.rpartition(".")[2] in ENDINGS]
        if not pictures:
            left.extend(file for _, file in members)
            continue
        others = [
            (ending, file.part)
            for ending, file in members
            if file is not pictures[0] and travels(file.part)
        ]
        left += [file for _, file in members if not travels(file.part) and file not in pictures]
        rows.add(clean_key(stem), pictures[0].part, mtime=pictures[0].mtime, siblings=others)
    return left


def travels(part: Part) -> bool:
    """Whether a file can go beside a picture: it is there, and no larger than a description."""
    return 0 <= part.size <= MAX_SIDECAR


class Archives:
    """Counts the archives among files that are left aside, which nobody enters."""

    def __init__(self) -> None:
        self._count, self._first = 0, ""

    def take(self, files: Iterable[SourceFile]) -> None:
        """Add those among `files`."""
        for file in files:
            if file.path.lower().endswith(ARCHIVES) and not is_hidden(file.path):
                self._first = min(self._first, file.path) if self._count else file.path
                self._count += 1

    def notes(self) -> tuple[str, ...]:
        """Return a sentence on them, if there are any."""
        if not self._count:
            return ()
        one = self._count == 1
        which = "an archive inside was" if one else f"{self._count:,} archives inside were"
        names = clean_text(self._first) + ("" if one else ", ...")
        return (f"{which} not entered ({names}): give each by itself, or unpack it first",)


def left_out(files: Iterable[SourceFile]) -> tuple[str, ...]:
    """Return sentences on those of `files`, left aside, that were meant to describe pictures."""
    notes = []
    for file in files:
        if stem_and_ending(file.path)[1] in SIDECARS and not travels(file.part):
            why = "leads to no file" if file.part.size < 0 else f"has {file.part.size:,} bytes"
            notes.append(f"{clean_text(file.path)} {why}, and was left out")
    return tuple(notes)


def _beside(path: str, taken: set[str]) -> bool:
    stem, ending = stem_and_ending(path)
    return ending in SIDECARS and stem in taken
