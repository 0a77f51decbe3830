"""Shards in an object store that speaks S3's protocol."""

from __future__ import annotations

import re
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import fsspec
import pytest

from shards import Cache, Stream, stream
from shards.errors import ShardsRuntimeError
from shards.reading import ranges, s3
from shards.reading.fetch import Fetcher, Patience
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


CONTENT = bytes(range(60, 130))


@pytest.fixture
def cut_at(monkeypatch):
    """A store of one object, whose answers are cut at a byte; what sets that byte."""
    cut = [0]

    class Cut(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
            part = CONTENT[first : last + 1]
            head = "HTTP/1.1 206 Partial Content\r\nServer: store\r\n"
            head += f"Content-Length: {len(part)}\r\nETag: abc\r\n"
            head += f"Content-Range: bytes {first}-{last}/{len(CONTENT)}\r\n\r\n"
            self.wfile.write((head.encode() + part)[: cut[0]])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Cut)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}"),
    ):
        monkeypatch.setenv(name, value)
    yield lambda byte: cut.__setitem__(0, byte)
    server.shutdown()
    server.server_close()


def test_an_answer_that_is_cut_anywhere_is_none(cut_at):
    came, fetcher = 0, Fetcher("s3://bucket", Patience(attempts=1))
    for byte in range(220):
        cut_at(byte)
        for ask in (
            lambda: fetcher.size("file") == len(CONTENT),
            lambda: fetcher.part("file", 3, 9) == CONTENT[3:9],
            lambda: fetcher.whole("file") == CONTENT,
        ):
            try:
                assert ask()
            except ShardsRuntimeError:
                continue
            came += 1
    assert 3 <= came < 3 * 220 / 2


def test_the_size_of_an_empty_object(bucket):
    fsspec.filesystem("s3").pipe(f"{bucket}/file", b"")
    assert Fetcher(bucket).size("file") == 0
    assert Fetcher(bucket).whole("file") == b""


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
