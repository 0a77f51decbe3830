"""Tables as other people write them: what JSON cannot hold, lists of pictures, descriptions."""

from __future__ import annotations

import datetime
import decimal
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards import ShardsError
from shards.sources.dataset import sizes_of
from shards.sources.values import has_bytes, json_value
from tests.shards.making import encoded, jpeg, make


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def member(dest: Path, ending: str) -> bytes:
    with tarfile.open(dest / "train-000000.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(ending))
        stream = tar.extractfile(name)
        assert stream is not None
        return stream.read()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
)
VALUES = st.recursive(SCALARS, lambda one: st.lists(one) | st.dictionaries(st.text(), one))


@given(VALUES)
def test_any_value_of_a_table_is_json_that_others_read(value: Any) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = json.dumps(json_value(value), allow_nan=False).encode()
    json.loads(text, parse_constant=refuse)


def test_times_and_numbers_keep_what_they_say() -> None:
    assert json_value(datetime.date(2020, 1, 2)) == "2020-01-02"
    assert json_value(decimal.Decimal("1.50")) == "1.50"
    assert json_value([float("nan"), 1.5, True]) == [None, 1.5, True]


@pytest.mark.parametrize(
    ("kind", "bytes_inside"),
    [
        (pa.binary(), True),
        (pa.large_binary(), True),
        (pa.binary(16), True),
        (pa.list_(pa.struct([("a", pa.binary())])), True),
        (pa.map_(pa.string(), pa.binary()), True),
        (pa.struct([("a", pa.list_(pa.string()))]), False),
        (pa.timestamp("ns"), False),
        (pa.decimal128(5), False),
    ],
)
def test_types_with_bytes_inside_are_known(kind: pa.DataType, bytes_inside: bool) -> None:
    assert has_bytes(kind) == bytes_inside


def test_columns_beside_the_pictures(tmp_path: Path) -> None:
    pictures = [jpeg(0), jpeg(1)]
    table = pa.table(
        {
            "image": pictures,
            "when": [datetime.datetime(2020, 1, 1)] * 2,
            "mask": pictures,
            "score": [float("nan")] * 2,
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    summary = make(tmp_path / "t.parquet", tmp_path / "d")
    assert json.loads(member(tmp_path / "d", "json")) == {
        "score": None,
        "when": "2020-01-01T00:00:00",
    }
    (note,) = summary.notes
    assert "column mask was left out" in note


def test_a_second_column_of_pictures_is_named(tmp_path: Path) -> None:
    import datasets

    one = {"bytes": jpeg(0), "path": None}
    features = datasets.Features({"image": datasets.Image(), "depth": datasets.Image()})
    saved = datasets.Dataset.from_dict({"image": [one], "depth": [None]}, features=features)
    saved.save_to_disk(tmp_path / "saved")
    summary = make(tmp_path / "saved", tmp_path / "d")
    assert summary.samples == 1
    assert "column depth was left out" in summary.notes[0]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[b"a", b"b"]], pa.list_(pa.binary())),
        pa.array([{"image": {"bytes": b"a"}}]),
    ],
)
def test_bytes_that_are_not_one_picture_a_row_are_refused(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"images": column, "words": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(ShardsError, match="column images of images, words holds bytes"):
        make(tmp_path / "t.parquet", tmp_path / "d")


def test_sizes_are_taken_chunk_by_chunk() -> None:
    one = pa.array([b"ab", None, b""], pa.binary())
    assert sizes_of(pa.chunked_array([one, one])) == ([2, -1, 0] * 2, [""] * 6)


@pytest.mark.parametrize("named", ["train/0.jpg", "0.jpg"])
def test_metadata_parquet_describes_pictures(named: str, tmp_path: Path) -> None:
    (tmp_path / "in" / "train").mkdir(parents=True)
    (tmp_path / "in" / "train" / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "in" / "other").mkdir()
    row = {"file_name": [named], "text": ["words"], "at": [datetime.date(2020, 1, 1)], "x": [b"x"]}
    folder = "in" if "/" in named else "in/train"
    pq.write_table(pa.table(row), tmp_path / folder / "metadata.parquet")
    summary = make(tmp_path / "in", tmp_path / "d")
    assert member(tmp_path / "d", "txt") == b"words"
    assert json.loads(member(tmp_path / "d", "json")) == {"at": "2020-01-01", "captions": ["words"]}
    assert "1 of 1 pictures matched" in summary.notes[0]


def test_a_damaged_metadata_parquet_is_left_out_by_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "in" / "metadata.parquet").write_bytes(b"PAR1 and no more")
    summary = make(tmp_path / "in", tmp_path / "d")
    assert summary.samples == 1
    assert "metadata.parquet was left out: it is no Parquet file" in summary.notes[0]


def test_a_destination_inside_its_source_is_no_part_of_it(tmp_path: Path) -> None:
    source = tmp_path / "q"
    for name in ("a/0", "b/1", "train", "train-000007"):
        path = source / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(len(name)))
    first = make(source, source)
    again = make(source, source)
    assert (first.samples, again.samples, again.made) == (4, 4, 0)
    inside = make(source, source / "a" / "shards")
    assert (inside.samples, make(source, source / "a" / "shards").made) == (4, 0)


def test_pictures_without_names_get_the_ending_of_what_they_are(tmp_path: Path) -> None:
    png = encoded(Image.new("RGB", (64, 64)), "PNG")
    pq.write_table(pa.table({"image": [b"", png, png]}), tmp_path / "a.parquet")
    assert make(tmp_path / "a.parquet", tmp_path / "d").samples == 2
    assert member(tmp_path / "d", ".png") == png
