"""Descriptions of pictures as people have them: what is unambiguous works, nothing is silent."""

from __future__ import annotations

import contextlib
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import ShardsError
from shards.sources.base import Part, UnreadableError
from shards.sources.captions import DESCRIPTIONS, Described, read_descriptions
from shards.sources.files import SourceFile
from tests.shards.making import jpeg, make

WANTED = {f"{n}.jpg": [f"caption {n}"] for n in range(4)}
ROWS = [f"{n}.jpg,caption {n}" for n in range(4)]
HEAD = "file_name,text"


def described(name: str, data: bytes) -> Described:
    file = SourceFile(name, Part(b"", 0, len(data)), 0)
    return read_descriptions([file], lambda _: data)


@pytest.mark.parametrize(
    "lines",
    [
        [HEAD, *ROWS],
        [HEAD, *ROWS, "", ","],
        [HEAD, *("./" + row for row in ROWS)],
        [HEAD, *(".\\" + row for row in ROWS)],
        [HEAD, *(f'"{row}"'.replace(",", '","') for row in ROWS)],
        ["image\tcaption", *(row.replace(",", "\t") for row in ROWS)],
        ["image_name| comment_number| comment", *(r.replace(",", "| 0| ") for r in ROWS)],
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_are_read_however_they_are_written(lines: list[str], end: str, coding: str) -> None:
    found = described("metadata.csv", (end.join(lines) + end).encode(coding))
    assert found.captions == WANTED


def test_rows_that_name_no_picture_are_counted() -> None:
    found = described("metadata.csv", "\n".join([HEAD, *ROWS, ",", ",x"]).encode())
    assert found.captions == WANTED
    assert found.notes == ("metadata.csv: 2 rows name no picture",)


def test_long_captions_and_odd_ones_stay_whole() -> None:
    long, odd = "x" * 140_000, "one\u2028two\x85three"
    text = "\n".join([HEAD, f'0.jpg,"{long}"', f"1.jpg,{odd}"])
    assert described("metadata.csv", text.encode()).captions == {"0.jpg": [long], "1.jpg": [odd]}
    line = json.dumps({"file_name": "0.jpg", "text": odd}, ensure_ascii=False)
    assert described("metadata.jsonl", line.encode()).captions == {"0.jpg": [odd]}


def test_a_quote_that_nobody_closes_takes_no_other_row_with_it() -> None:
    text = "\n".join([HEAD, ROWS[0], '1.jpg,"it is 5 in. wide', *ROWS[2:]])
    found = described("metadata.csv", text.encode()).captions
    assert found == {**WANTED, "1.jpg": ["it is 5 in. wide"]}


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    line = json.dumps({"file_name": "0.jpg", "text": "cut \ud83d", "user": ["\ud83d", {"a": "b"}]})
    found = described("metadata.jsonl", line.encode())
    assert found.captions == {"0.jpg": ["cut \ufffd"]}
    assert found.columns == {"0.jpg": {"user": ["\ufffd", {"a": "b"}]}}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(jpeg())
    (tmp_path / "a" / "0.json").write_text(json.dumps({"user": "cut \ud83d"}))
    (tmp_path / "a" / "captions.csv").write_text("image,caption\n0,without its ending\n")
    make(tmp_path / "a", tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        file = tar.extractfile("0.json")
        assert file is not None
        own = json.loads(file.read())
    assert own == {"user": "cut \ufffd", "captions": ["without its ending"]}


def test_a_description_that_cannot_be_read_is_left_out_by_name() -> None:
    def fail(_: SourceFile) -> bytes:
        raise UnreadableError("the member's checksum is wrong")

    found = read_descriptions([SourceFile("a/captions.csv", Part(b"", 0, 9), 0)], fail)
    assert (found.captions, len(found.left)) == ({}, 1)
    assert found.notes == ("a/captions.csv was left out: the member's checksum is wrong",)


def test_a_table_without_a_column_of_names_is_refused() -> None:
    with pytest.raises(ShardsError, match="no column image_name"):
        described("captions.csv", b"what,ever\n1,2\n")


def test_a_run_says_what_its_descriptions_matched(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("0.jpg", "1.jpg", "deep/2.jpg", "deep/3.jpg"):
        (tmp_path / "a" / name).write_bytes(jpeg(int(Path(name).stem)))
    lines = ["file_name,text", "0.jpg,zero", "gone.jpg,nothing", "deep/2.jpg,two", "lost.jpg,x"]
    (tmp_path / "a" / "metadata.csv").write_text("\n".join(lines))
    (tmp_path / "a" / "deep" / "captions.csv").write_text("image,caption\n3.jpg,three\n")
    summary = make(tmp_path / "a", tmp_path / "out")
    assert summary.notes == [
        "descriptions: 3 of 4 pictures matched, 2 names matched nothing (first: gone.jpg)"
    ]


def test_a_name_without_a_caption_has_found_its_picture(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(2):
        (tmp_path / "a" / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "a" / "metadata.csv").write_text("file_name,text\n0.jpg,zero\n1.jpg,\n")
    summary = make(tmp_path / "a", tmp_path / "out")
    assert summary.notes == ["descriptions: 2 of 2 pictures matched"]


@given(st.binary(max_size=200), st.sampled_from(DESCRIPTIONS))
def test_any_bytes_are_a_description_or_refused_in_a_sentence(data: bytes, name: str) -> None:
    for content in (data, HEAD.encode() + b"\n" + data):
        with contextlib.suppress(ShardsError):
            described(name, content)


def test_a_line_that_is_not_json_takes_no_other_with_it() -> None:
    lines = [b'{"file_name": "a.jpg", "text": "one"}', b'{"file_name": "b', b"}"]
    found = described("metadata.jsonl", b"\n".join([*lines, lines[0].replace(b"a.jpg", b"c.jpg")]))
    assert found.captions == {"a.jpg": ["one"], "c.jpg": ["one"]}
    assert found.notes == (
        "metadata.jsonl: 2 lines are not JSON and were left out (first: line 2)",
    )


def test_names_and_captions_may_be_no_utf_8() -> None:
    found = described("captions.csv", b"image,caption\ncaf\xe9.jpg,th\xe9\n").captions
    assert found == {"caf\udce9.jpg": ["th\\xe9"]}


def test_a_line_that_names_no_picture_is_counted_in_json_too() -> None:
    lines = ['{"file_name": "0.jpg", "text": "zero"}', '{"x": 1}', '{"file_name": null}', "[1]"]
    found = described("metadata.jsonl", "\n".join(lines).encode())
    assert found.captions == {"0.jpg": ["zero"]}
    assert found.notes == ("metadata.jsonl: 2 rows name no picture",)
