"""Zips whose directory is not what it seems, members of odd kinds, archives that nobody enters."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shards import ShardsError
from tests.shards.making import jpeg, make, rejects

Change = Callable[[bytearray], object]


def zipped(names: list[str], **links: str) -> bytes:
    """Return a zip of pictures; `links` are symbolic, under names without ending."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for number, name in enumerate(names):
            file.writestr(name, jpeg(number))
        for name, target in links.items():
            link = zipfile.ZipInfo(f"{name}.jpg")
            link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            file.writestr(link, target)
    return stream.getvalue()


def at(data: bytearray, signature: bytes, offset: int, value: bytes) -> None:
    """Replace what stands `offset` bytes behind the last `signature`."""
    place = data.rfind(signature) + offset
    data[place : place + len(value)] = value


def _end_in_comment(data: bytearray) -> None:
    at(data, b"PK\5\6", 20, struct.pack("<H", 22))
    data.extend(b"PK\5\6" + bytes(18))


THREE = ["0.jpg", "1.jpg", "2.jpg"]
LISTED: dict[str, tuple[Change, dict[str, str]]] = {
    "counts its entries modulo 65,536": (
        lambda data: at(data, b"PK\5\6", 8, struct.pack("<2H", 1, 1)),
        {},
    ),
    "has a comment like the end of a directory": (
        _end_in_comment,
        {},
    ),
    "has an entry beyond its end": (
        lambda data: at(data, b"PK\1\2", 42, struct.pack("<L", 1 << 30)),
        {"x.zip/2.jpg": "missing"},
    ),
    "has an entry that is longer than the file": (
        lambda data: at(data, b"PK\1\2", 20, struct.pack("<L", 1 << 30)),
        {"x.zip/2.jpg": "missing"},
    ),
    "has an entry at a wrong place": (
        lambda data: at(data, b"PK\1\2", 42, struct.pack("<L", 7)),
        {"x.zip/2.jpg": "unreadable"},
    ),
}


@pytest.mark.parametrize("kind", LISTED)
def test_a_zip_gives_every_entry_of_its_directory(kind: str, tmp_path: Path) -> None:
    data = bytearray(zipped(THREE))
    change, rejected = LISTED[kind]
    change(data)
    (tmp_path / "x.zip").write_bytes(data)
    assert make(tmp_path / "x.zip", tmp_path / "d").listed == 3
    assert rejects(tmp_path / "d") == rejected


REFUSED: dict[str, tuple[Change, str]] = {
    "joined": (lambda data: data.extend(zipped(["3.jpg"])), "another zip stands before it"),
    "split": (lambda data: at(data, b"PK\5\6", 4, b"\1\0"), "one part of a split zip"),
    "short of entries": (
        lambda data: at(data, b"PK\5\6", 8, struct.pack("<2H", 9, 9)),
        "has 3 of 9 entries",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_zip_that_would_lose_some_is_refused(kind: str, tmp_path: Path) -> None:
    data = bytearray(zipped(THREE))
    change, words = REFUSED[kind]
    change(data)
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ShardsError, match=words):
        make(tmp_path / "x.zip", tmp_path / "d")


def test_links_of_zips_lead_where_those_of_tars_lead(tmp_path: Path) -> None:
    data = zipped(
        ["a/0.jpg"], link="a/0.jpg", circle="circle.jpg", out="../../0.jpg", late="link.jpg"
    )
    (tmp_path / "x.zip").write_bytes(data)
    assert make(tmp_path / "x.zip", tmp_path / "d").samples == 3
    assert set(rejects(tmp_path / "d").values()) == {"missing"}


def test_members_of_no_known_kind_are_files_and_devices_are_missing(tmp_path: Path) -> None:
    data = b""
    for name, kind in (("0.jpg", b"0"), ("1.jpg", b"Z"), ("2.jpg", tarfile.FIFOTYPE)):
        member = tarfile.TarInfo(name)
        content = jpeg() if kind != tarfile.FIFOTYPE else b""
        member.type, member.size = kind, len(content)
        data += member.tobuf() + content + bytes(-len(content) % 512)
    (tmp_path / "x.tar").write_bytes(data + bytes(1024))
    summary = make(tmp_path / "x.tar", tmp_path / "d")
    assert (summary.samples, summary.reasons) == (2, {"missing": 1})


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_archives_that_nobody_enters_are_named(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "b").mkdir(parents=True)
    (folder / "0.jpg").write_bytes(jpeg())
    for name in ("more.tar.gz", "b/others.zip"):
        (folder / name).write_bytes(zipped(THREE))
    source = folder
    if kind == "zip":
        source = tmp_path / "x.zip"
        with zipfile.ZipFile(source, "w") as file:
            for path in sorted(folder.rglob("*.*")):
                file.write(path, path.relative_to(folder))
    summary = make(source, tmp_path / "d")
    assert (summary.samples, summary.ignored) == (1, 2)
    assert [note for note in summary.notes if "not entered (b/others.zip, ...)" in note]


def test_why_no_picture_could_be_used_is_told(tmp_path: Path) -> None:
    data = bytearray(zipped(["0.jpg"]))
    data[6] |= 1  # encrypted
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ShardsError, match=r"1 unreadable; the first, 0: the member is encrypted"):
        make(tmp_path / "x.zip", tmp_path / "d")
