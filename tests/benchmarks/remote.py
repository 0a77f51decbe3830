"""Measures streaming from a store that is far away, and prints the tables of `docs/streaming.md`.

    python -m tests.benchmarks.remote [--pictures FOLDER] [--copies N] [--shard-size 32MB]

A real S3 server (moto's) on this machine, behind a throttle: 30 ms a request, 50 MB/s a connection,
1 GB/s in all, one request in a thousand fails. Loaders that are not installed are named and left
out. Needs s3fs and moto[server], and curl for webdataset.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import torch

from shards import Manifest, open_corpus
from tests.benchmarks.remote_peers import LOADERS
from tests.benchmarks.stream import DATA, ROOT
from tests.benchmarks.throttle import Line, Throttle

CROP, NODES = 256, (1, 2, 4, 8)
# What a loader is imported as, where that is not its name.
MODULES = {"ours": "shards", "mosaicml": "streaming"}
CORPUS, OTHER = "corpus", "other"
FIRST, STEADY, RESUME = "first batch, s", "images/s", "resume at 90 %, s"
MIXED = ", 3 to 1 mixture"
# After the first batch.
STEADY_BATCHES = 30


def prepare(
    given: argparse.Namespace, work: Path, names: Sequence[str]
) -> tuple[Throttle, str, int]:
    """Start the server, make and upload two corpora; return the throttle, a URL and its bytes."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
    )
    import s3fs

    # Open to all: curl, which webdataset reads by, has no credentials.
    public = {"ACL": "public-read"}
    direct = s3fs.S3FileSystem(skip_instance_cache=True, s3_additional_kwargs=public)
    direct.mkdir("bucket")
    found = sorted(given.pictures.rglob("*.[jJ][pP]*[gG]"))[: given.count]
    for corpus, pictures in ((CORPUS, found), (OTHER, found[::3])):
        shards = _shard(work / corpus, pictures, given)
        direct.put(f"{shards}/", f"s3://bucket/{corpus}/", recursive=True)
        for name in {"mosaicml", "litdata"}.intersection(names):
            made = work / f"{corpus}-{name}"
            CONVERTED[name](shards, made)
            direct.put(f"{made}/", f"s3://bucket/{corpus}-{name}/", recursive=True)
    throttle = Throttle(port, Line())
    os.environ["AWS_ENDPOINT_URL"] = throttle.url
    s3fs.S3FileSystem.clear_instance_cache()
    total = sum(path.stat().st_size for path in (work / CORPUS / "shards").glob("*.tar"))
    return throttle, f"s3://bucket/{CORPUS}", total


def _shard(work: Path, pictures: Sequence[Path], given: argparse.Namespace) -> Path:
    """Pack the pictures `given.copies` times, and return the folder of the shards."""
    (work / "pictures").mkdir(parents=True)
    for copy in range(given.copies):
        for number, path in enumerate(pictures):
            (work / "pictures" / f"{copy}-{number:05d}{path.suffix}").symlink_to(path.resolve())
    command = [sys.executable, "-m", "pipeline.cli.main", "shard", str(work / "pictures")]
    command += ["--workers", "2", "--out", str(work / "shards")]
    command += ["--shard-size", given.shard_size, "--check", "header"]
    subprocess.run(command, check=True, cwd=ROOT)
    return work / "shards"


def _pictures(shards: Path) -> Iterator[bytes]:
    corpus = open_corpus(shards)
    for shard, size in enumerate(corpus.sizes):
        for index in range(size):
            yield corpus.read(corpus.sample(shard, index))


def _as_mosaic(shards: Path, made: Path) -> None:
    import streaming

    with streaming.MDSWriter(out=str(made), columns={"image": "bytes"}) as out:
        for picture in _pictures(shards):
            out.write({"image": picture})


def _as_litdata(shards: Path, made: Path) -> None:
    from litdata.streaming import Cache as Chunks

    chunks = Chunks(str(made), chunk_bytes="32MB")
    for number, picture in enumerate(_pictures(shards)):
        chunks[number] = {"image": picture}
    chunks.done()
    chunks.merge()


CONVERTED = {"mosaicml": _as_mosaic, "litdata": _as_litdata}


def measure(name: str, url: str, told: Connection) -> None:
    """Measure one loader; tell of each column when it begins, and its value when it is known."""
    load = LOADERS[name]
    for nodes in NODES:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
            told.send((share(nodes), None))
            for _ in load([url], Path(work), 0, nodes, 0.0, 0):
                pass
            told.send((share(nodes), 0.0))
    # The last one of these goes on fetching after its first batch, so nothing is counted any more.
    both = [url, url.replace(CORPUS, OTHER)]
    for urls, start, more in (([url], 0.0, ""), (both, 0.0, MIXED), ([url], 0.9, "")):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
            column = (RESUME if start else FIRST) + more
            told.send((column, None))
            begun = time.perf_counter()
            batches = iter(load(urls, Path(work), 0, 1, start, CROP))
            next(batches)
            told.send((column, time.perf_counter() - begun))
            if not start:
                told.send((STEADY + more, None))
                begun = time.perf_counter()
                # A mixture has no end of its own with every loader.
                count = sum(len(images) for images in islice(batches, STEADY_BATCHES))
                told.send((STEADY + more, count / (time.perf_counter() - begun)))


def share(nodes: int) -> str:
    """Return the name of the column of what one of `nodes` nodes fetches, in corpora."""
    return f"corpora a node at {nodes}"


def row(name: str, url: str, total: int, throttle: Throttle, limit: float) -> dict[str, str]:
    """Return a row of the table: what a loader in a process of its own has told of in time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measured, args=(name, url, theirs), daemon=False)
    process.start()
    theirs.close()
    found: dict[str, str] = {}
    column, before = FIRST, throttle.count()[0]
    with contextlib.suppress(EOFError):
        while ours.poll(limit):
            column, value = ours.recv()
            if value is None:
                before = throttle.count()[0]
                found[column] = "failed"
            elif column.startswith("corpora"):
                found[column] = f"{(throttle.count()[0] - before) / total:.2f}"
            else:
                found[column] = f"{value:.0f}" if column.startswith(STEADY) else f"{value:.2f}"
            if value is not None:
                print(f"# {name}: {column}: {found[column]}", flush=True)
        found[column] = f"over {limit:.0f} s"
    _end(process)
    return found


def _measured(name: str, url: str, told: Connection) -> None:
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        for module in ("s3fs", "boto3", "pyarrow.parquet", "PIL.Image", MODULES.get(name, name)):
            importlib.import_module(module)  # before time is taken
        measure(name, url, told)
    told.close()


def _end(process: BaseProcess) -> None:
    """End a process with all that it started."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    process.join()


def installed(name: str) -> bool:
    """Whether a loader can be imported here; says so if not."""
    try:
        importlib.import_module(MODULES.get(name, name))
    except ImportError as error:
        print(f"{name}: not installed ({error})")
        return False
    return True


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=DATA / "imagenet-mini" / "train")
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--count", type=int, help="take so many of the pictures alone")
    parser.add_argument("--shard-size", default="32MB")
    parser.add_argument("--loaders", default=",".join(LOADERS), help="these alone, with commas")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one number")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in given.loaders.split(",") if installed(name)]
    mixed = [FIRST + MIXED, STEADY + MIXED]
    columns = [FIRST, STEADY, *mixed, *map(share, NODES), RESUME]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        throttle, url, total = prepare(given, Path(temporary), names)
        manifest = Manifest.read(url)
        print(f"{manifest.samples} pictures, {len(manifest.shards)} shards, {total / 1e6:.0f} MB")
        rows = {name: row(name, url, total, throttle, given.limit) for name in names}
        print(f"\n| loader | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for name, found in rows.items():
            print(f"| {name} | {' | '.join(found.get(column, '-') for column in columns)} |")
        throttle.stop()


if __name__ == "__main__":
    main()
