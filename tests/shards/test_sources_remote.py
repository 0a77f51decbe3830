"""Sources on a store, compressed tars, tars that are classes: the same shards as from a folder."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from shards import ShardsError
from shards.making.workers import run_jobs
from shards.run import shard
from shards.sources.places import ReadAhead
from tests.shards.making import SMALL, corpus, jpeg, make, rows

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "tar.gz": gzip.compress,
    "tgz": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "tar.xz": lzma.compress,
    "tbz2": bz2.compress,
    "tar.zst": lambda data: bytes(pa.compress(data, codec="zstd", asbytes=True)),
    "tar": gzip.compress,  # a name that does not say it
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in class folders."""
    return corpus(tmp_path_factory.mktemp("remote") / "a", count=12)


@pytest.fixture(scope="module")
def tarred(folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(folder, ".")
    return stream.getvalue()


@pytest.fixture(scope="module")
def expected(folder: Path) -> bytes:
    make(folder, folder.parent / "expected")
    return (folder.parent / "expected" / "train-000000.tar").read_bytes()


@pytest.fixture
def store() -> Iterator[str]:
    """The URL of an empty folder in memory."""
    fs = fsspec.filesystem("memory")
    yield "memory://sources"
    if fs.exists("/sources"):
        fs.rm("/sources", recursive=True)


def put(url: str, data: bytes) -> str:
    fsspec.filesystem("memory").pipe_file(url, data)
    return url


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_tars_give_what_the_folder_gives(
    kind: str, tmp_path: Path, tarred: bytes, expected: bytes
) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(PACKERS[kind](tarred))
    make(path, tmp_path / "d")
    assert (tmp_path / "d" / "train-000000.tar").read_bytes() == expected


@pytest.mark.parametrize("kind", [kind for kind in PACKERS if kind != "tar"])
def test_what_stands_behind_a_compressed_tar_is_read_or_refused(
    kind: str, tmp_path: Path, tarred: bytes
) -> None:
    path = tmp_path / f"x.{kind}"
    packed = PACKERS[kind](tarred)
    path.write_bytes(packed + PACKERS[kind](tarred))
    assert make(path, tmp_path / "joined").listed == 24
    for more in (b"junk", packed[1:]):
        path.write_bytes(packed + more)
        with pytest.raises(ShardsError, match=rf"x\.{kind} is no .*, or is cut off or damaged"):
            make(path, tmp_path / "d")
    if kind != "tar.zst":  # its own program refuses such a file too
        path.write_bytes(packed + bytes(512))
        assert make(path, tmp_path / "padded").listed == 12


@pytest.mark.parametrize("kind", [kind for kind in PACKERS if kind != "tar"])
@pytest.mark.parametrize("how", ["cut", "junk", "other"])
def test_damaged_compressed_tars_are_refused(
    kind: str, how: str, tmp_path: Path, tarred: bytes
) -> None:
    path = tmp_path / f"x.{kind}"
    packed = PACKERS[kind](tarred)
    half = len(packed) // 2
    damage = {"cut": packed[:half], "junk": packed[:half] + bytes(99), "other": b"no archive"}
    path.write_bytes(damage[how])
    with pytest.raises(ShardsError, match=rf"x\.{kind} is no "):
        make(path, tmp_path / "d")
    assert not list(tmp_path.glob("d/*"))


def test_sources_on_a_store_give_what_the_folder_gives(
    tmp_path: Path, folder: Path, tarred: bytes, expected: bytes, store: str
) -> None:
    for path in folder.rglob("*.jpg"):
        put(f"{store}/a/{path.relative_to(folder)}", path.read_bytes())
    zipped = Path(shutil.make_archive(str(tmp_path / "x"), "zip", folder)).read_bytes()
    sources = {
        "folder": f"{store}/a",
        "tar": put(f"{store}/x.tar", tarred),
        "zip": put(f"{store}/x.zip", zipped),
        "packed": put(f"{store}/x.tar.xz", lzma.compress(tarred)),
    }
    for name, source in sources.items():
        assert make(source, tmp_path / name, workers=2).samples == 12
        assert (tmp_path / name / "train-000000.tar").read_bytes() == expected
    put(f"{store}/shards/one-0.tar", expected)
    again = make(f"shards:{store}/shards/one-{{0..0}}.tar", tmp_path / "again")
    assert again.samples == 12
    assert make(f"shards:{store}/shards/one-*.tar", tmp_path / "again").made == 0


def test_what_is_wrong_on_a_store_is_named(tmp_path: Path, tarred: bytes, store: str) -> None:
    put(f"{store}/cut.tar", tarred[:5000])
    put(f"{store}/a.jpeg.exe", b"")
    wrong = {
        f"{store}/none.tar": "there is no source .*none.tar",
        f"{store}/cut.tar": "cut.tar is no tar, or is cut off",
        f"{store}/a.jpeg.exe": "can't read pictures from",
        f"shards:{store}/none-*.tar": "are not there",
        "nosuch://x/y.tar": "cannot open nosuch://x/y.tar",
    }
    for source, words in wrong.items():
        with pytest.raises(ShardsError, match=words):
            make(source, tmp_path / "d")
    assert not (tmp_path / "d").exists()


class NoCredentialsError(Exception):
    """As botocore calls it."""


@pytest.mark.parametrize("error", [PermissionError("Forbidden"), NoCredentialsError("none found")])
def test_a_store_that_refuses_is_named_at_once(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Refusing(MemoryFileSystem):
        protocol = "refusing"

        def info(self, path: str, **more: object) -> dict[str, object]:
            asked.append(path)
            raise error

        def ls(self, path: str, detail: bool = True, **more: object) -> list[dict[str, object]]:
            asked.append(path)
            raise error

    fsspec.register_implementation("refusing", Refusing, clobber=True)
    words = f"the store refuses access to refusing://bucket/a.* \\({error}\\)"
    with pytest.raises(ShardsError, match=words):
        make("refusing://bucket/a.tar", tmp_path / "d")
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    with pytest.raises(ShardsError, match=words):
        shard([str(tmp_path)], "refusing://bucket/a", SMALL, workers=1)
    assert len(asked) == 2


@given(
    st.binary(min_size=1, max_size=400),
    st.lists(st.tuples(st.integers(0, 420), st.integers(0, 90))),
)
def test_reading_ahead_gives_the_same_bytes(data: bytes, asked: list[tuple[int, int]]) -> None:
    class Bytes:
        size, mtime = len(data), 0

        def at(self, offset: int, size: int) -> bytes:
            return data[offset : offset + size]

        def is_as_opened(self) -> bool:
            return True

        def close(self) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shards.sources.places.LEAST", 8)
        patch.setattr("shards.sources.places.MOST", 64)
        place = ReadAhead(Bytes())
        for offset, size in asked:
            assert place.at(offset, size) == data[offset : offset + size]


def test_several_flat_tars_are_classes(tmp_path: Path) -> None:
    specs = []
    for name in ("cat", "dog"):
        path = tmp_path / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            for number in range(2):
                data = jpeg(ord(name[0]) + number)
                member = tarfile.TarInfo(f"./{name}{number}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        specs.append(str(path))
    shard(specs, tmp_path / "d", SMALL, workers=1)
    assert {(str(one["key"])[:3], one["label"]) for one in rows(tmp_path / "d")} == {
        ("cat", "cat"),
        ("dog", "dog"),
    }
    make(specs[0], tmp_path / "one")
    assert {one["label"] for one in rows(tmp_path / "one")} == {None}


LINES = ("a/one.jpg", "{store}/a/two.jpg", " ./a/three.jpg", "a/gone.jpg", "https://host/x.jpg", "")


@pytest.mark.parametrize("where", ["store", "here"])
def test_lists_name_pictures_on_stores(tmp_path: Path, store: str, where: str) -> None:
    for number, name in enumerate(("one", "two", "three")):
        put(f"{store}/a/{name}.jpg", jpeg(number))
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{name}.jpg").write_bytes(jpeg(number))
    text = "\r\n".join(LINES).format(store=store)
    path = put(f"{store}/x.txt", text.encode())
    if where == "here":
        path = str(tmp_path / "x.txt")
        Path(path).write_text(text)
    made = make(path, tmp_path / "d", workers=1)  # a store in memory is this process's alone
    assert (made.samples, made.reasons) == (3, {"missing": 2})
    assert {str(one["key"]) for one in rows(tmp_path / "d")} == {"a/one", "two", "a/three"}


def test_a_list_of_absolute_urls_is_keyed_from_their_common_folder(
    tmp_path: Path, store: str
) -> None:
    urls = [put(f"{store}/deep/{name}/x.jpg", jpeg(number)) for number, name in enumerate("ab")]
    make(put(f"{store}/x.lst", "\n".join(urls).encode()), tmp_path / "d")
    assert {one["key"] for one in rows(tmp_path / "d")} == {"a/x", "b/x"}


@pytest.mark.parametrize("kind", ["folder", "store", "list"])
def test_what_goes_or_changes_meanwhile_is_a_reject(
    tmp_path: Path, store: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("local" if kind == "folder" else "memory")
    root = str(tmp_path / "a") if kind == "folder" else f"{store}/a"
    for number in range(6):
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/{number}.jpg", jpeg(number))
    fs.pipe_file(f"{root}/5.txt", b"words")
    lines = "".join(f"a/{number}.jpg\n" for number in range(6))
    source = put(f"{store}/x.txt", lines.encode()) if kind == "list" else root

    def run(*arguments: Any) -> None:
        fs.rm_file(f"{root}/0.jpg")
        fs.pipe_file(f"{root}/1.jpg", b"other bytes")
        fs.rm_file(f"{root}/5.txt")
        run_jobs(*arguments)

    monkeypatch.setattr("shards.run.run_jobs", run)
    beside = {} if kind == "list" else {"unreadable": 1}
    assert make(source, tmp_path / "d").reasons == {"missing": 1, "changed": 1, **beside}
    details = str(pq.read_table(tmp_path / "d" / "train.rejects.parquet")["detail"].to_pylist())
    assert "bytes when it was listed, and has 11" in details
    assert str(tmp_path) not in details


def test_a_folder_of_a_store_that_is_gone_ends_the_run(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(f"{store}/a/0.jpg", jpeg())

    def run(*arguments: Any) -> None:
        fsspec.filesystem("memory").rm("/sources", recursive=True)
        run_jobs(*arguments)

    monkeypatch.setattr("shards.run.run_jobs", run)
    with pytest.raises(ShardsError, match=r"a/0\.jpg is gone"):
        make(f"{store}/a", tmp_path / "d")
