"""Captions and metadata that come in one file for many pictures.

Flickr30k's `results.csv` (`image_name| comment_number| comment`), Flickr8k's `captions.txt`
(`image,caption`), the `.token` files of both (`NAME#0<TAB>caption`), and the `metadata.csv` or
`metadata.jsonl` of the `datasets` image folder (a column `file_name`, any others).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shards.errors import ShardsError
from shards.sources.base import UnreadableError, clean_text
from shards.sources.files import Found, left_out

NAMES = ("image_name", "image", "file_name", "filename", "file")
CAPTIONS = ("comment", "caption", "text", "sentence")
COUNTERS = ("comment_number", "caption_number")

MAX_DESCRIPTION = 1 << 30  # bytes

Captions = dict[str, list[str]]
Columns = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Described:
    """What descriptions say, by picture; the files that describe nothing; what was left out."""

    captions: Captions
    columns: Columns
    left: list[Found]
    notes: tuple[str, ...]


def is_description(path: str) -> bool:
    """Whether the file at `path` may describe many pictures."""
    name = path.rpartition("/")[2].lower()
    return name in (
        *("results.csv", "captions.txt", "captions.csv", "metadata.csv", "metadata.jsonl"),
    ) or name.endswith(".token")


def read_descriptions(files: list[Found], read: Callable[[Found], bytes]) -> Described:
    """Return what `files` say of pictures, and those that say nothing.

    A picture is named as its file names it, and by its path from the root of the source. A
    description that cannot be read is left out, with a note.

    Raises:
        ShardsError: a description cannot be understood.
    """
    captions: Captions = {}
    columns: Columns = {}
    left, notes = [], list(left_out(files))
    for file in sorted(files, key=lambda one: one.path):
        if not is_description(file.path):
            left.append(file)
            continue
        folder = file.path.rpartition("/")[0]
        try:
            if not 0 <= file.part.size <= MAX_DESCRIPTION:
                raise UnreadableError(
                    "it leads to no file" if file.part.size < 0 else "it is too large"
                )
            data = read(file)
        except UnreadableError as error:
            left.append(file)
            notes.append(f"{clean_text(file.path)} was left out: {error}")
            continue
        for name, caption, others in _records(file.path, data):
            for known in {name, f"{folder}/{name}" if folder else name}:
                if caption:
                    captions.setdefault(known, []).append(caption)
                if others:
                    columns.setdefault(known, {}).update(others)
    return Described(captions, columns, left, tuple(dict.fromkeys(notes)))


def _records(path: str, data: bytes) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (picture's name, caption or "", other columns) of each line of a description."""
    text = data.decode("utf-8-sig", "replace")
    if path.endswith(".token"):
        for line in filter(None, text.splitlines()):
            numbered, _, spoken = line.partition("\t")
            yield numbered.partition("#")[0], spoken.strip(), {}
        return
    for row in _objects(path, text) if path.endswith(".jsonl") else _table(text):
        named = next((column for column in NAMES if row.get(column)), None)
        if named is None:
            raise ShardsError(
                f"{path} describes pictures but has no column {' or '.join(NAMES)}: "
                "name the column so, or move the file away"
            )
        column = next((column for column in CAPTIONS if column in row), None)
        caption = row.pop(column) if column else None
        name = row.pop(named)
        others = {key: value for key, value in row.items() if key not in COUNTERS}
        yield str(name).strip(), str(caption or "").strip(), others


def _objects(path: str, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line or "null")
        except ValueError as error:
            raise ShardsError(f"{path}, line {number}, is not JSON: mend or move it") from error
        if isinstance(row, dict):
            yield row


def _table(text: str) -> Iterator[dict[str, Any]]:
    head = text.partition("\n")[0]
    delimiter = max("|,\t;", key=head.count)
    # In Flickr30k's file quotes are part of the captions.
    lines = io.StringIO(text, newline="")
    if delimiter == "|":
        rows = csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines, delimiter=delimiter)
    columns = [column.strip().lower() for column in next(rows, [])]
    for row in rows:
        if row:
            # A line of Flickr30k lacks a delimiter: what there is counts.
            yield dict(zip(columns, row, strict=False))
