"""Shards in an object store that speaks S3's protocol."""

from __future__ import annotations

import fsspec
import pytest

from shards import Cache, Stream, stream
from tests.shards.made import numbered, write_split

moto = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs")
pytest.importorskip("s3fs", reason="needs moto[server] and s3fs")


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
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield "s3://bucket/corpus"
    server.stop()


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
