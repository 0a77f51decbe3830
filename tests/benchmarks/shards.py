"""Measures sharding: planning at scale, and speed against what the same bytes allow.

    python -m tests.benchmarks.shards PICTURES [--copies 4] [--repeats 3] [--entries 2000000]

PICTURES is a folder of JPEGs, copied `--copies` times into as many folders, and four times that
for the contenders that do not decode. Every rate is taken in one run, the contenders in turn,
`--repeats` times; the table shows the median and the spread, and the ratio that is asked for. CPU
time, of all processes together, stands beside the rate: what else the machine does changes it
less. Copies and results go to the system's temporary folder, or to TMPDIR. Writers of other
projects that are not installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import simplejpeg

from shards.making.listing import list_corpus
from shards.making.plan import make_plans
from shards.options import Options
from shards.run import default_workers, shard
from shards.sources import Listed, Reader, Rows
from shards.sources.base import Part

Contender = Callable[[Path, Path], None]  # takes a source and a destination
SHARDS = 28  # of any corpus: the share of each worker is whole
MORE = 4  # times as many copies for contenders that do not decode


@dataclass(frozen=True)
class Synthetic:
    """A source of `entries` pictures in 1,000 classes that are not there."""

    entries: int
    name: str = "synthetic"
    origin: str = ""

    def collect(self, rows: Rows) -> Listed:
        for number in range(self.entries):
            key = f"n{number % 1000:08d}/n{number % 1000:08d}_{number:07d}"
            rows.add(key, Part(f"{key}.JPEG".encode(), 0, 100_000 + number % 9973), label=key[:9])
        return Listed(labelled=True)

    def reader(self) -> Reader:
        raise NotImplementedError


def plan_at_scale(entries: int) -> tuple[float, float, float]:
    """Return seconds, CPU seconds and peak MB of listing and planning in a process of its own."""
    code = f"from tests.benchmarks.shards import plan_here; plan_here({entries})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, work, memory = map(float, done.stdout.split())
    return seconds, work, memory


def plan_here(entries: int) -> None:
    """List and plan; print seconds, CPU seconds and peak MB."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as file:
        corpus = list_corpus([Synthetic(entries)], 0, None)
        plan = make_plans(corpus, Options(), {"train": file})["train"]
    assert plan.listed == entries
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(time.perf_counter() - start, time.process_time(), peak)


def decode(paths: list[Path]) -> None:
    """Read and decode every JPEG to RGB, and nothing else: the bare decoder."""
    for path in paths:
        simplejpeg.decode_jpeg(path.read_bytes())


def bare_decoder(source: Path, dest: Path) -> None:
    """Decode on all cores."""
    paths = sorted(source.rglob("*.JPEG"))
    workers = default_workers()
    if workers == 1:
        decode(paths)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(decode, [paths[start::workers] for start in range(workers)]))


def ours(check: str) -> Contender:
    """Return `pipeline shard` with the check given."""

    def run(source: Path, dest: Path) -> None:
        size = shard_size(source)
        options = Options(shard_size=size, min_side=0, check=check, labels=False)
        shard([str(source)], dest, options)

    return run


def shard_size(source: Path) -> int:
    """Return the bytes that a shard has so that there are `SHARDS` of them."""
    return sum(path.stat().st_size for path in source.rglob("*.JPEG")) // SHARDS


def tar(source: Path, dest: Path) -> None:
    """Run `tar cf`."""
    dest.mkdir()
    subprocess.run(["tar", "cf", dest / "all.tar", "-C", source, "."], check=True)


def flushed_tar(source: Path, dest: Path) -> None:
    """Run `tar cf`, and wait until the disk has it all, as `pipeline shard` does."""
    tar(source, dest)
    with (dest / "all.tar").open("rb") as file:
        os.fsync(file.fileno())


def shard_writer(source: Path, dest: Path) -> None:
    """Write with webdataset's ShardWriter in one process, each JPEG decoded as a check."""
    import webdataset

    dest.mkdir()
    pattern = f"{dest}/%06d.tar"
    with webdataset.ShardWriter(pattern, maxsize=shard_size(source), verbose=0) as writer:
        for path in sorted(source.rglob("*.JPEG")):
            data = path.read_bytes()
            simplejpeg.decode_jpeg(data)
            writer.write({"__key__": path.stem, "jpg": data})


def mds_writer(source: Path, dest: Path) -> None:
    """Write with mosaicml-streaming's MDSWriter in one process, each JPEG decoded as a check."""
    from streaming import MDSWriter

    columns = {"key": "str", "jpg": "bytes"}
    with MDSWriter(out=str(dest), columns=columns, size_limit=shard_size(source)) as writer:
        for path in sorted(source.rglob("*.JPEG")):
            writer.write({"key": path.stem, "jpg": _checked(str(path))["jpg"]})


def litdata_optimize(source: Path, dest: Path) -> None:
    """Write with litdata's optimize in processes of its own, each JPEG decoded as a check."""
    from litdata import optimize

    paths = [str(path) for path in sorted(source.rglob("*.JPEG"))]
    with contextlib.redirect_stdout(io.StringIO()):
        optimize(
            _checked,
            paths,
            str(dest),
            chunk_bytes=shard_size(source),
            num_workers=default_workers(),
            verbose=False,
        )


def _checked(path: str) -> dict[str, bytes]:
    data = Path(path).read_bytes()
    simplejpeg.decode_jpeg(data)
    return {"jpg": data}


DECODING: dict[str, Contender] = {
    "bare JPEG decoder, all cores": bare_decoder,
    "pipeline shard, full check": ours("full"),
    "webdataset ShardWriter, 1 process, decoding": shard_writer,
    "mosaicml-streaming MDSWriter, 1 process, decoding": mds_writer,
    "litdata optimize, all cores, decoding": litdata_optimize,
}
COPYING: dict[str, Contender] = {
    "pipeline shard, header check": ours("header"),
    "pipeline shard, no check": ours("none"),
    "tar cf": tar,
    "tar cf, flushed to the disk": flushed_tar,
}
ASKED = [
    ("pipeline shard, full check", "bare JPEG decoder, all cores", 0.85),
    ("pipeline shard, full check", "webdataset ShardWriter, 1 process, decoding", 1.7),
    ("pipeline shard, no check", "tar cf", 0.5),
]


@dataclass(frozen=True)
class Taken:
    """One run of a contender: pictures a second, and milliseconds of CPU for each."""

    rate: float
    work: float


def measure(
    contenders: dict[str, Contender], source: Path, scratch: Path, repeats: int
) -> dict[str, list[Taken]]:
    """Return what every contender took, each in turn."""
    count = len(list(source.rglob("*.JPEG")))
    found: dict[str, list[Taken]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            dest = scratch / "dest"
            start, work = time.perf_counter(), _cpu()
            try:
                contender(source, dest)
            except ImportError as error:
                print(f"{name}: not installed ({error})", flush=True)
                continue
            took = time.perf_counter() - start
            found[name].append(Taken(count / took, 1000 * (_cpu() - work) / count))
            shutil.rmtree(dest, ignore_errors=True)
    return {name: taken for name, taken in found.items() if taken}


def _cpu() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_memory(source: Path, dest: Path) -> float:
    """Return the peak of the memory (PSS, MB) of `pipeline shard` and its workers together."""
    words = ["shard", source, "--out", dest, "--shard-size", shard_size(source)]
    process = subprocess.Popen([sys.executable, "-m", "pipeline.cli.main", *map(str, words)])
    peak = 0.0
    while process.poll() is None:
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
        )
        peak = max(peak, sum(map(_pss, [process.pid, *map(int, listed.stdout.split())])))
        time.sleep(0.05)
    return peak


def _pss(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:"))


def copies(pictures: Path, folder: Path, times: int) -> Path:
    """Return a folder with `times` copies of the pictures, as read lately as can be."""
    for path in _pictures(pictures):
        for number in range(times):
            target = folder / str(number) / f"{path.parent.name}_{path.stem}.JPEG"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)  # of links, `tar` would write the first alone
    return folder


def _pictures(folder: Path) -> Iterator[Path]:
    yield from (
        path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")
    )


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--entries", type=int, default=2_000_000)
    asked = parser.parse_args()
    seconds, work, memory = plan_at_scale(asked.entries)
    told = f"{seconds:.1f} s, {work:.1f} s of CPU | {memory:.0f} MB"
    print(f"| plan {asked.entries} entries | {told} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source = copies(asked.pictures, scratch / "source", asked.copies)
        memory = peak_memory(source, scratch / "memory")
        print(f"| peak memory, {default_workers()} workers | {memory:.0f} MB | |", flush=True)
        found = measure(DECODING, source, scratch, asked.repeats)
        copies(asked.pictures, source, MORE * asked.copies)
        found |= measure(COPYING, source, scratch, asked.repeats)
    for name, taken in found.items():
        rates = shown([one.rate for one in taken], 0)
        print(f"| {name} | {rates} | {shown([one.work for one in taken], 2)} |")
    for name, peer, wanted in ASKED:
        pairs = list(zip(found[name], found[peer], strict=True))
        rates = shown([one.rate / other.rate for one, other in pairs], 2)
        works = shown([other.work / one.work for one, other in pairs], 2)
        print(f"| {name} / {peer} (goal {wanted}) | {rates} | {works} |")


def shown(values: list[float], digits: int) -> str:
    """Return median, least and greatest."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
