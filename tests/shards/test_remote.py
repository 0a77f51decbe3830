"""Destinations behind URLs: a real S3 server, `file://` and `memory://`."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from shards import Manifest, ShardsRuntimeError
from shards.inspecting.summary import inspect
from shards.inspecting.verify import verify
from shards.store import Store
from tests.shards.making import checksums, corpus, make

pytestmark = pytest.mark.slow  # processes, servers and codecs of their own


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("corpus"), count=20)


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    dest = tmp_path_factory.mktemp("expected") / "shards"
    make(source, dest)
    return checksums(dest)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a real S3 server on this machine."""
    server_module = pytest.importorskip("moto.server", reason="needs moto's S3 server")
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs")
    server = server_module.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"pictures-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/corpus/shards"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def remote_checksums(url: str) -> dict[str, str]:
    store = Store(url)
    return {name: hashlib.sha256(store.read(name)).hexdigest() for name in sorted(store.names())}


@pytest.mark.parametrize("workers", [1, 2])
def test_s3_gets_the_same_bytes_and_leaves_nothing_here(
    source: Path,
    expected: dict[str, str],
    bucket: str,
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert make(source, bucket, workers=workers).complete  # type: ignore[arg-type]
    assert remote_checksums(bucket) == expected
    assert not list(tmp_path.iterdir())
    assert not verify(bucket).problems
    assert inspect(bucket)[0].samples == 20


def test_sources_on_s3_are_read_in_place(
    source: Path, expected: dict[str, str], bucket: str, tmp_path: Path
) -> None:
    import s3fs

    fs = s3fs.S3FileSystem()
    fs.put(f"{source}/", f"{bucket}/in/", recursive=True)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(source, ".")
    fs.put_file(str(tmp_path / "x.tar"), f"{bucket}/x.tar")
    tars = {name: one for name, one in expected.items() if name.endswith(".tar")}
    for name in ("in", "x.tar"):
        make(f"{bucket}/{name}", tmp_path / f"of {name}")
        found = checksums(tmp_path / f"of {name}")
        assert {name: one for name, one in found.items() if name.endswith(".tar")} == tars


def test_s3_resumes_with_what_is_there(source: Path, expected: dict[str, str], bucket: str) -> None:
    make(source, bucket)  # type: ignore[arg-type]
    store = Store(bucket)
    store.remove("train-000001.tar")
    store.remove("train.json")
    assert make(source, bucket).made == 1  # type: ignore[arg-type]
    assert remote_checksums(bucket) == expected
    assert make(source, bucket).made == 0  # type: ignore[arg-type]


def test_a_folder_behind_a_url_is_a_folder(
    source: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    make(source, f"file://{tmp_path}/dest")  # type: ignore[arg-type]
    assert checksums(tmp_path / "dest") == expected


def test_memory_holds_shards_too(source: Path, expected: dict[str, str]) -> None:
    make(source, "memory://corpus/dest", workers=2)  # type: ignore[arg-type]
    assert remote_checksums("memory://corpus/dest") == expected
    assert Manifest.read("memory://corpus/dest").samples == 20
    fsspec.filesystem("memory").rm("/corpus", recursive=True)


class Flaky(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
    """A store that fails two times before it takes a file."""

    protocol = "flaky"
    failures = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def put_file(self, lpath: str, rpath: str, **more: object) -> None:
        Flaky.failures += 1
        if Flaky.failures % 3:
            raise ConnectionError("the line is down")
        super().put_file(lpath, rpath, **more)


def test_uploads_are_tried_again(
    source: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr("pipeline.common.retries.time.sleep", lambda seconds: None)
    make(source, "flaky://again/dest", workers=1)  # type: ignore[arg-type]
    assert remote_checksums("flaky://again/dest") == expected
    fsspec.filesystem("memory").rm("/again", recursive=True)


def test_a_store_that_stays_away_is_told(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.common.retries.time.sleep", lambda seconds: None)
    monkeypatch.setattr(Flaky, "put_file", lambda *given, **more: _down())
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    with pytest.raises(ShardsRuntimeError, match=r"never/dest.*: the line is down"):
        make(source, "flaky://never/dest", workers=1)  # type: ignore[arg-type]


def _down() -> None:
    raise ConnectionError("the line is down")
