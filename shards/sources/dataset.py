"""Pictures in a Parquet file or in a dataset of the `datasets` library, left undecoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ShardsError
from shards.sources.base import (
    ChangedError,
    Entry,
    Listed,
    Part,
    Rows,
    Sample,
    UnreadableError,
    clean_key,
    encode_path,
    stem_and_ending,
)
from shards.sources.values import has_bytes, json_value

BATCH = 1000
KEYS = ("__key__", "key", "file_name", "id")
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "bytes")


@dataclass(frozen=True)
class DatasetSource:
    """The rows of a `datasets.Dataset`, which lies in Arrow files and is pickled as their paths.

    Its class label becomes the label; all other columns that JSON can hold travel with the picture.
    """

    label: str
    dataset: Any
    image: str
    class_column: str | None

    @property
    def name(self) -> str:
        """What the user named, without folders."""
        return self.label

    @property
    def origin(self) -> str:
        """Empty: `datasets` reads the pictures."""
        return ""

    def collect(self, rows: Rows) -> Listed:
        """Add every row; sizes come from the Arrow offsets, the pictures are not read."""
        names = self._class_names()
        number = 0
        for table in self._batches():
            sizes, paths = sizes_of(table[self.image])
            keys = self._keys(table, paths, number)
            labels = table[self.class_column].to_pylist() if self.class_column else None
            for row, (key, size) in enumerate(zip(keys, sizes, strict=True)):
                told = labels[row] if labels else None
                label = names[told] if told is not None and told >= 0 else None
                rows.add(key, Part(_location(paths[row]), number + row, size), label=label)
            number += table.num_rows
        return Listed(labelled=bool(names), classes=tuple(names), notes=self._notes())

    def reader(self) -> DatasetReader:
        """Open the dataset for reading."""
        left_out = {self.image, self.class_column or self.image, *self._without_json()}
        return DatasetReader(self.dataset, self.image, left_out)

    def _without_json(self) -> list[str]:
        """Return the columns, beside the pictures', that JSON cannot hold."""
        schema = self.dataset.features.arrow_schema
        return [one.name for one in schema if one.name != self.image and has_bytes(one.type)]

    def _notes(self) -> tuple[str, ...]:
        names = [name for name in self._without_json() if not name.startswith("__")]
        if not names:
            return ()
        which = f"column {names[0]} was" if len(names) == 1 else f"columns {', '.join(names)} were"
        return (
            f"{self.label}: the pictures are those of column {self.image}; {which} left out, "
            "since JSON cannot hold bytes",
        )

    def _batches(self) -> Iterator[pa.Table]:
        columns = [self.image, *([self.class_column] if self.class_column else [])]
        columns += [name for name in KEYS if name in self.dataset.column_names]
        chosen = self.dataset.select_columns(list(dict.fromkeys(columns))).with_format("arrow")
        yield from chosen.iter(batch_size=BATCH)

    def _class_names(self) -> list[str]:
        return list(self.dataset.features[self.class_column].names) if self.class_column else []

    def _keys(self, table: pa.Table, paths: list[str], first: int) -> list[str]:
        named = next((name for name in KEYS if name in table.column_names), None)
        given = [str(one) for one in table[named].to_pylist()] if named else paths
        if named in (None, "file_name"):
            given = [stem_and_ending(Path(path).name)[0] for path in given]
        numbered = (f"{first + row:09d}" for row in range(table.num_rows))
        return [clean_key(one) or number for one, number in zip(given, numbered, strict=True)]


class DatasetReader:
    """Reads rows of a dataset by their number."""

    def __init__(self, dataset: Any, image: str, left_out: set[str]) -> None:
        self._dataset = dataset
        self._image = image
        self._left_out = {*left_out, "__key__", "__url__"}

    def read(self, entry: Entry) -> Sample:
        """Return the picture's bytes, and the other columns."""
        row = self._dataset[entry.picture.offset]
        picture = row[self._image]
        data, path = (picture, None) if isinstance(picture, bytes) else _unpacked(picture)
        if data is None:
            try:
                data = Path(path or "").read_bytes()
            except OSError as error:
                raise UnreadableError(error.strerror or str(error)) from None
        if len(data) != entry.picture.size:
            raise ChangedError(entry.key, entry.picture.size, len(data))
        fields, described = self._members(row)
        names = row.keys() - {*self._left_out, *fields, *described}
        meta = {name: json_value(row[name]) for name in sorted(names) if row[name] is not None}
        return Sample(data, fields, {**meta, **described.get("json", {})})

    def _members(self, row: dict[str, Any]) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Return the text and the JSON that stood beside the picture in a WebDataset shard."""
        if "__key__" not in row:
            return {}, {}
        texts = {name: row[name] for name in ("txt", "cls") if row.get(name) is not None}
        described = {"json": row["json"]} if isinstance(row.get("json"), dict) else {}
        return {name: str(value).encode() for name, value in texts.items()}, described

    def close(self) -> None:
        """Nothing is held open."""


def open_dataset(name: str, split: str | None) -> DatasetSource:
    """Return dataset `name`: a saved folder, a local folder of data files, or one of the hub.

    Raises:
        ShardsError: it cannot be loaded, has several splits, or has no pictures.
    """
    import datasets

    try:
        if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name)
    except Exception as error:
        words = str(error).partition("\n")[0]
        raise ShardsError(f"dataset {name} cannot be loaded: {words}") from error
    return _source(Path(name).name, _one_split(loaded, name, split))


def open_parquet(paths: list[str], label: str) -> DatasetSource:
    """Return the pictures of Parquet files; `datasets` keeps them as Arrow files in its cache.

    Raises:
        ShardsError: they cannot be read, or have no pictures.
    """
    import datasets

    try:
        loaded = datasets.load_dataset("parquet", data_files=sorted(paths), split="train")
    except Exception as error:
        words = str(error).partition("\n")[0]
        raise ShardsError(f"Parquet file {paths[0]} cannot be read: {words}") from error
    return _source(label, loaded)


def _one_split(loaded: Any, name: str, split: str | None) -> Any:
    if not hasattr(loaded, "keys"):
        if split is not None:
            raise ShardsError(f"dataset {name} has no splits: leave out :{split}")
        return loaded
    splits = list(loaded.keys())
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        raise ShardsError(
            f"dataset {name} has splits {', '.join(splits)}: name one, like hf:{name}:{splits[0]}"
        )
    return loaded[split]


def _source(label: str, dataset: Any) -> DatasetSource:
    import datasets

    features = dataset.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images += [name for name in IMAGE_NAMES if _holds_bytes(features.get(name))]
    if not images:
        raise ShardsError(f"{label} has no column of pictures: {_why_none(features)}")
    for name, kind in features.items():
        if isinstance(kind, datasets.Image):  # a second one too: a damaged one must not end a run
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return DatasetSource(label, dataset, images[0], classes[0] if classes else None)


def _holds_bytes(kind: Any) -> bool:
    if isinstance(kind, dict):
        return "bytes" in kind
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def _why_none(features: Any) -> str:
    """Return what there is in place of a column of pictures, and what to do."""
    nested = [one.name for one in features.arrow_schema if has_bytes(one.type)]
    names = ", ".join(features)
    if not nested:
        return f"it has {names}; name one image, and fill it with the bytes of the files"
    return (
        f"column {nested[0]} of {names} holds bytes, but not one picture a row; "
        "write a row a picture, with its bytes in a column called image"
    )


def sizes_of(column: pa.ChunkedArray) -> tuple[list[int], list[str]]:
    """Return sizes of the pictures in bytes (-1: not there), and their paths ("": unknown)."""
    sizes: list[int] = []
    paths: list[str] = []
    for chunk in column.chunks:  # joined, they may be more than 2 GiB, which a column cannot hold
        more, names = _sizes(chunk)
        sizes += more
        paths += names
    return sizes, paths


def _sizes(array: pa.Array) -> tuple[list[int], list[str]]:
    if not pa.types.is_struct(array.type):
        return [-1 if size is None else size for size in pc.binary_length(array).to_pylist()], [
            ""
        ] * len(array)
    names = [field.name for field in array.type]
    paths = pc.struct_field(array, "path").to_pylist() if "path" in names else [None] * len(array)
    sizes = pc.binary_length(pc.struct_field(array, "bytes")).to_pylist()
    return [
        _file_size(path) if size is None else size for size, path in zip(sizes, paths, strict=True)
    ], [path or "" for path in paths]


def _file_size(path: str | None) -> int:
    try:
        return os.stat(path).st_size if path else -1  # noqa: PTH116 - hot path
    except OSError:
        return -1


def _location(path: str) -> bytes:
    return encode_path(Path(path).name)


def _unpacked(picture: dict[str, Any]) -> tuple[bytes | None, str | None]:
    return picture.get("bytes"), picture.get("path")
