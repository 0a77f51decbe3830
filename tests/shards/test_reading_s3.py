"""Shards in an object store that speaks S3's protocol."""

from __future__ import annotations

import urllib.request

import fsspec
import pytest

from shards import Cache, Stream, stream
from shards.reading import ranges, s3
from shards.reading.fetch import Fetcher
from tests.shards.made import numbered, write_split

moto = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs")
s3fs = pytest.importorskip("s3fs", reason="needs moto[server] and s3fs")


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket on this machine, its URL."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    # Both outlive a server: the buckets, and the connections of file systems that are kept.
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
    s3fs.S3FileSystem.clear_instance_cache()
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield "s3://bucket/corpus"
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_an_epoch_from_s3_is_the_local_one(bucket, tmp_path):
    write_split(tmp_path / "corpus", [10, 10, 10], numbered(30))
    fsspec.filesystem("s3").put(str(tmp_path / "corpus") + "/", bucket + "/", recursive=True)
    wanted = [batch.keys for batch in stream(tmp_path / "corpus", batch_size=5, crop=16)]
    for workers in (0, 2):
        cache = Cache(tmp_path / f"cache-{workers}")
        one = Stream(bucket, batch_size=5, crop=16, workers=workers, epochs=1, cache=cache)
        assert [batch.keys for batch in one] == wanted
    by_pattern = Stream(f"{bucket}/train-*.tar", batch_size=5, crop=16, epochs=1, cache=cache)
    assert [batch.keys for batch in by_pattern] == wanted


def test_a_store_that_refuses_the_plain_client_is_read_by_s3fs(bucket, monkeypatch):
    fsspec.filesystem("s3").pipe(f"{bucket}/file", b"0123456789")
    assert Fetcher(bucket).part("file", 2, 5) == b"234"
    with pytest.raises(FileNotFoundError):
        Fetcher(bucket).part("other", 0, 1)

    def refused(*_: object, **__: object) -> None:
        raise s3.NotLetInError("AccessDenied")

    monkeypatch.setattr(s3.PlainS3, "_asked", refused)
    fetcher = Fetcher(bucket)
    assert (fetcher.size("file"), fetcher.part("file", 2, 5)) == (10, b"234")


def test_the_plain_client_is_taken_where_the_environment_says_all(bucket, monkeypatch, tmp_path):
    pytest.importorskip("minio", reason="needs the extra s3")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert s3.serves(bucket)
    assert not s3.serves("gs://bucket/corpus")
    for name, value in (
        ("AWS_PROFILE", "work"),
        ("AWS_ENDPOINT_URL", "http://host/path"),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("HTTPS_PROXY", "http://proxy:1"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not s3.serves(bucket)
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = eu-west-1\n")
    assert not s3.serves(bucket)


@pytest.mark.slow
def test_each_of_four_nodes_fetches_its_quarter(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "PART", 12_000)  # of shards of 250 kB
    monkeypatch.setattr(ranges, "ALONE", 0)
    write_split(tmp_path / "corpus", [60] * 8, numbered(480), checksums=True)
    fsspec.filesystem("s3").put(str(tmp_path / "corpus") + "/", bucket + "/", recursive=True)
    total = sum(path.stat().st_size for path in (tmp_path / "corpus").glob("*.tar"))
    seen = []
    for rank in range(4):
        cache = Cache(tmp_path / f"cache-{rank}")
        place = {"rank": rank, "world_size": 4, "epochs": 1}
        own = Stream(bucket, batch_size=4, crop=8, block=1, cache=cache, **place)  # type: ignore[arg-type]
        seen += [key for batch in own for key in batch.keys]
        assert own.traffic.bytes <= 1.1 * total / 4
    assert len(set(seen)) == len(seen) == 480
