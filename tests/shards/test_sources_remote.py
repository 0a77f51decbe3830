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

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from shards import ShardsError
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
        f"{store}/none.tar": "none.tar is not there",
        f"{store}/cut.tar": "cut.tar is no tar, or is cut off",
        f"{store}/a.jpeg.exe": "no kind that is known",
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


def test_a_file_that_vanished_from_a_store_ends_the_run_by_name(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        put(f"{store}/a/{number}.jpg", jpeg(number))
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr("shards.run.run_jobs", vanishing(fs, f"{store}/a/1.jpg"))
    with pytest.raises(ShardsError, match=r"a/1\.jpg is gone"):
        make(f"{store}/a", tmp_path / "d")


def vanishing(fs: fsspec.AbstractFileSystem, url: str) -> Callable[..., None]:
    from shards.making.workers import run_jobs

    def run(*arguments: object) -> None:
        fs.rm(url)
        run_jobs(*arguments)  # type: ignore[arg-type]

    return run


@given(
    st.binary(min_size=1, max_size=400),
    st.lists(st.tuples(st.integers(0, 420), st.integers(0, 90))),
)
def test_reading_ahead_gives_the_same_bytes(data: bytes, asked: list[tuple[int, int]]) -> None:
    class Bytes:
        size, mtime = len(data), 0

        def at(self, offset: int, size: int) -> bytes:
            return data[offset : offset + size]

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
