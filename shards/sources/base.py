"""What every source of pictures gives: a listing (a row a picture), and a picture's bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from pipeline.common.pictures.formats import ENDINGS
from shards.arrays import array
from shards.errors import ShardsError

# Files beside a picture, of the same stem, that travel with it.
SIDECARS = frozenset({"json", "txt", "cls"})

# The largest of them, in bytes; a larger one is no description of a picture, and stays behind.
MAX_SIDECAR = 1 << 26
SURROGATES = re.compile("[\ud800-\udfff]")

NOT_IN_KEYS = re.compile(r"[.\x00-\x1f\x7f\ud800-\udfff]")
# A character of these, or a part of a path that is empty: what `clean_key` mends.
UNCLEAN = re.compile(r"[.\\\x00-\x1f\x7f\ud800-\udfff]|^/|//|/$")

BATCH_ROWS = 16_384

SIBLING = pa.struct(
    [("ext", pa.string()), ("location", pa.binary()), ("offset", pa.int64()), ("size", pa.int64())]
)
# A row a picture. `location`, `offset` and `size` say where its bytes are inside the source
# (which number `source` counts); `size` is -1 when the picture is named but not there.
LISTING = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.int32()),
        ("location", pa.binary()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("label", pa.string()),
        ("siblings", pa.list_(SIBLING)),
    ]
)


class Part(NamedTuple):
    """Where some bytes are inside a source."""

    location: bytes
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """One row of the listing, as a reader takes it."""

    key: str
    picture: Part
    label: str | None = None
    siblings: tuple[tuple[str, Part], ...] = ()

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Entry:
        """Return the entry of a listing's row."""
        siblings = tuple(
            (one["ext"], Part(one["location"], one["offset"], one["size"]))
            for one in row["siblings"] or ()
        )
        picture = Part(row["location"], row["offset"], row["size"])
        return cls(row["key"], picture, row["label"], siblings)


@dataclass
class Sample:
    """A picture's bytes as they are in the source, and what travels with it.

    `fields` maps an ending ("json", "txt", "cls", ...) to bytes; `meta` holds columns to add
    to the JSON.
    """

    data: bytes
    fields: dict[str, bytes] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


class UnreadableError(Exception):
    """A picture's bytes cannot be had; `detail` is that of the reject."""

    @property
    def detail(self) -> str:
        """Why, without the machine's paths."""
        return str(self)


class GoneError(ShardsError, UnreadableError):
    """A picture that was listed is there no more; the others of its source are."""

    @property
    def detail(self) -> str:
        """What happened."""
        return "it was listed, and is gone since"


class ChangedError(ShardsError, UnreadableError):
    """A picture has another size than when it was listed; the others of its source are there."""

    def __init__(self, place: str, before: int, now: int) -> None:
        how = f"had {before:,} bytes when it was listed, and has {now:,}"
        super().__init__(f"the source changed while it was read: {place} {how}")
        self.how = how

    @property
    def detail(self) -> str:
        """Both sizes."""
        return f"it {self.how}"


class Reader(Protocol):
    """Reads pictures of one source; belongs to one process, may be used by its threads."""

    def read(self, entry: Entry) -> Sample:
        """Return the bytes of `entry`; raises UnreadableError, or ShardsError if it changed."""

    def close(self) -> None:
        """Give back what was opened."""


@dataclass(frozen=True)
class Listed:
    """What a source knows once all its pictures are listed.

    Attributes:
        ignored: files that are not pictures and do not travel with one.
        labelled: whether the labels given with the rows are meant as classes.
        classes: the labels in the order of their numbers, where the source knows one.
        captions: captions by file name (or path) of the picture.
        columns: further columns by file name (or path) of the picture.
        notes: sentences on what was left out, for the user.
        named: the pictures that are described, by path, and as the description names them.
        one_class: whether each row's label is the source's own name, which is a class if all
            sources are so.
    """

    ignored: int = 0
    labelled: bool = False
    classes: tuple[str, ...] = ()
    captions: Mapping[str, list[str]] = field(default_factory=dict)
    columns: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    one_class: bool = False


class Source(Protocol):
    """A place that pictures come from. Pickles small: workers open their own reader."""

    @property
    def name(self) -> str:
        """Short name, without the machine's paths."""

    @property
    def origin(self) -> str:
        """The path or URL that pictures are read from; empty where a library reads them."""

    def collect(self, rows: Rows) -> Listed:
        """Add every picture to `rows`, in any order; raises ShardsError."""

    def reader(self) -> Reader:
        """Open the source for reading."""


def stem_and_ending(path: str) -> tuple[str, str]:
    """Return `path` without its last ending, and that ending in lower case: ("a/b", "jpg")."""
    folder, slash, name = path.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    if not dot or not stem:
        return path, ""
    return folder + slash + stem, ending.lower()


def is_picture(path: str) -> bool:
    """Whether `path` looks like a picture that someone meant: not hidden, a known ending."""
    return stem_and_ending(path)[1] in ENDINGS and not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether a part of `path` is hidden, or holds what macOS puts beside files."""
    if path[:1] != "." and "/." not in path and "__MACOSX" not in path:
        return False
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def clean_key(stem: str) -> str:
    """Return a WebDataset key for the path `stem`: no dot, control or undecodable character."""
    if not UNCLEAN.search(stem):
        return stem
    parts = stem.replace("\\", "/").split("/")
    return NOT_IN_KEYS.sub("_", "/".join([part for part in parts if part not in ("", ".", "..")]))


def clean_text(text: str) -> str:
    """Return `text` with what is no character written out, so that any encoder takes it.

    Bytes of a file name that are no UTF-8 become `\\xe9`, say; lone surrogates U+FFFD.
    """
    return SURROGATES.sub(_written_out, text)


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else "\ufffd"


def encode_path(path: str) -> bytes:
    """Return a file system path as bytes, whatever it holds."""
    return path.encode("utf-8", "surrogateescape")


def decode_path(location: bytes) -> str:
    """Return the path that `encode_path` encoded."""
    return location.decode("utf-8", "surrogateescape")


class Rows:
    """Takes the rows of a listing one by one and hands them on in batches: little memory.

    `scratch` is where a source may keep what does not fit the memory (None: the system's temporary
    folder); `tell` is called with how many more files a source has seen that are no rows yet.
    """

    def __init__(
        self,
        number: int,
        sink: Callable[[pa.RecordBatch], None],
        scratch: Path | None = None,
        tell: Callable[[int], None] = lambda more: None,
    ) -> None:
        self.number, self.scratch, self.tell = number, scratch, tell
        self._sink = sink
        self._rows: list[tuple[Any, ...]] = []  # in the order of the schema

    def add(
        self,
        key: str,
        picture: Part,
        *,
        mtime: int = 0,
        label: str | None = None,
        siblings: Sequence[tuple[str, Part]] = (),
    ) -> None:
        """Add a picture."""
        beside = [_as_row(ext, part) for ext, part in siblings] if siblings else None
        self._rows.append((key, self.number, *picture, mtime, label, beside))
        if len(self._rows) >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Hand on what was added since the last batch."""
        if self._rows:
            columns = [
                array(values, field.type)
                for values, field in zip(zip(*self._rows, strict=True), LISTING, strict=True)
            ]
            self._rows = []
            self._sink(pa.RecordBatch.from_arrays(columns, schema=LISTING))


def _as_row(ext: str, part: Part) -> dict[str, Any]:
    return {"ext": ext, "location": part.location, "offset": part.offset, "size": part.size}


class ClassFolders:
    """Finds out, path by path, whether pictures lie in class folders, or in none at all.

    They are in class folders when each lies in a folder directly under the root, there are two at
    least, and none has a description of its own beside it. `own` is the name of the source: the
    class of its pictures where each lies at the root.
    """

    def __init__(self, own: str = "") -> None:
        self._own = clean_text(own)
        self._folders: dict[str, str] = {}
        self._flat = self._otherwise = False

    def label(self, path: str, described: bool) -> str | None:
        """Return the class that the picture at `path` would have."""
        folder, slash, name = path.partition("/")
        if described or "/" in name:
            self._otherwise = True
            return None
        if not slash:
            self._flat = True
            return self._own or None
        label = self._folders.get(folder)
        if label is None:
            label = self._folders[folder] = clean_text(folder)
        return label

    @property
    def one(self) -> bool:
        """Whether the source itself may be a class."""
        return self._flat and not self._folders and not self._otherwise

    def __bool__(self) -> bool:
        return not self._otherwise and not self._flat and len(self._folders) > 1
