"""Captions and metadata that come in one file for many pictures.

Flickr30k's `results.csv` (`image_name| comment_number| comment`), Flickr8k's `captions.txt`
(`image,caption`), the `.token` files of both (`NAME#0<TAB>caption`), and the `metadata.csv` or
`metadata.jsonl` or `metadata.parquet` of the `datasets` image folder (a column `file_name`, any
others).
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.common.documents import parse
from pipeline.common.pictures.errors import first_line
from shards.errors import ShardsError
from shards.sources.base import UnreadableError, clean_text
from shards.sources.files import SourceFile, left_out
from shards.sources.tarwalk import plain
from shards.sources.values import has_bytes, json_value

DESCRIPTIONS = (
    "results.csv",
    "captions.txt",
    "captions.csv",
    "metadata.csv",
    "metadata.jsonl",
    "metadata.parquet",
)
NAMES = ("image_name", "image", "file_name", "filename", "file")
CAPTIONS = ("comment", "caption", "text", "sentence")
COUNTERS = ("comment_number", "caption_number")

MAX_DESCRIPTION = 1 << 30  # bytes

Captions = dict[str, list[str]]
Columns = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Described:
    """What descriptions say, by picture; the files that describe nothing; what was left out.

    `named` maps each picture that is named, by its path from the root, to its name in the file.
    """

    captions: Captions
    columns: Columns
    left: list[SourceFile]
    notes: tuple[str, ...]
    named: dict[str, str]


def is_description(path: str) -> bool:
    """Whether the file at `path` may describe many pictures."""
    name = path.rpartition("/")[2].lower()
    return name in DESCRIPTIONS or name.endswith(".token")


def read_descriptions(files: list[SourceFile], read: Callable[[SourceFile], bytes]) -> Described:
    """Return what `files` say of pictures, and those that say nothing.

    A picture is named as its file names it, and by its path from the root of the source. A
    description that cannot be read, and a line of one that is not JSON, are left out, with a note.

    Raises:
        ShardsError: a description does not say which column names the pictures.
    """
    captions: Captions = {}
    columns: Columns = {}
    named: dict[str, str] = {}
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
            wrong: list[int] = []
            records = _records(file.path, read(file), wrong)
            nameless = 0
            for name, caption, others in records:
                nameless += not name
                if not name:
                    continue
                path = f"{folder}/{name}" if folder else name
                named[path] = name
                for known in {name, path}:
                    if caption:
                        captions.setdefault(known, []).append(caption)
                    if others:
                        columns.setdefault(known, {}).update(others)
        except UnreadableError as error:
            left.append(file)
            notes.append(f"{clean_text(file.path)} was left out: {error}")
            continue
        if nameless:
            notes.append(f"{clean_text(file.path)}: {nameless} rows name no picture")
        if wrong:
            notes.append(
                f"{clean_text(file.path)}: {len(wrong)} lines are not JSON and were left out "
                f"(first: line {wrong[0]})"
            )
    return Described(captions, columns, left, tuple(dict.fromkeys(notes)), named)


def _records(path: str, data: bytes, wrong: list[int]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (picture's name, caption or "", other columns) of each line of a description.

    `wrong` takes the numbers of lines that can't be understood.

    Raises:
        UnreadableError: the whole file is damaged.
    """
    rows: Iterable[dict[str, Any]]
    if path.lower().endswith(".parquet"):
        rows = _parquet(data)
    else:
        text = _decoded(data)
        rows = _objects(text, wrong) if path.lower().endswith(".jsonl") else _table(text)
    if path.endswith(".token"):
        for line in filter(None, _lines(text)):
            numbered, _, spoken = line.partition("\t")
            yield _name(numbered.partition("#")[0]), clean_text(spoken.strip()), {}
        return
    found, lacking = False, False
    for row in rows:
        named = next((column for column in NAMES if row.get(column)), None)
        has_column = any(column in row for column in NAMES)
        found, lacking = found or has_column, lacking or not has_column
        column = next((column for column in CAPTIONS if column in row), None)
        caption = row.pop(column) if column else None
        name = _name(str(row.pop(named))) if named else ""
        others = {key: value for key, value in row.items() if key not in COUNTERS}
        yield name, clean_text(str(caption or "").strip()), json_value(others)
    if lacking and not found:
        raise ShardsError(
            f"{path} describes pictures but has no column {' or '.join(NAMES)}: "
            "name the column so, or move the file away"
        )


def _decoded(data: bytes) -> str:
    """Return the text of a file: UTF-16 where its byte order mark says so, else UTF-8.

    Bytes that are neither stay what they are, as in the paths of files.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "surrogateescape")


def _lines(text: str) -> list[str]:
    """Return the lines of `text`, which only a line feed ends: others occur in captions."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _name(text: str) -> str:
    """Return a picture's name or path as a source gives it."""
    return plain(text.strip().replace("\\", "/"))


def _objects(text: str, wrong: list[int]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(text), 1):
        try:
            row = parse(line or "null")
        except ValueError:
            wrong.append(number)
            continue
        if isinstance(row, dict):
            yield row


def _parquet(data: bytes) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file, all or none, without the columns that hold bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from shards.tables import reading_table

    try:
        with reading_table():
            file = pq.ParquetFile(pa.BufferReader(data))
            columns = [one.name for one in file.schema_arrow if not has_bytes(one.type)]
            return [
                {str(name).strip().lower(): value for name, value in row.items()}
                for batch in file.iter_batches(columns=columns)
                for row in batch.to_pylist()
            ]
    except pa.ArrowException as error:
        raise UnreadableError(f"it is no Parquet file ({first_line(error)})") from error


def _table(text: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_DESCRIPTION)
    head = text.partition("\n")[0]
    delimiter = max("|,\t;", key=head.count)
    columns: list[str] | None = None
    for row in _cells(text, delimiter):
        if columns is None:
            columns = [column.strip().lower() for column in row]
        elif row:
            # A line of Flickr30k lacks a delimiter: what there is counts.
            yield dict(zip(columns, row, strict=False))


def _cells(text: str, delimiter: str) -> Iterator[list[str]]:
    """Yield the cells of each row; where quotes do not fit, each line is a row of its own."""
    if delimiter == "|":
        # In Flickr30k's file quotes are part of the captions.
        lines = (line.replace("\r", " ") for line in _lines(text))
        yield from csv.reader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
        return
    try:
        whole = io.StringIO(text, newline="")
        yield from list(csv.reader(whole, delimiter=delimiter, strict=True))
    except csv.Error:
        for line in _lines(text):
            yield from csv.reader([line.replace("\r", " ")], delimiter=delimiter)
