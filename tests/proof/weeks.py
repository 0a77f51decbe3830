"""What grows over weeks, seen in an hour: memory, open files, logs, the time of a step.

    python -m tests.proof.weeks [--steps 50000] [--samples 2000000] [--requests 10000]

trains the smallest model for so many steps, streams so many samples, and lets a served model answer
so many requests. Each is looked at again and again while it runs; the table shows how fast each
quantity grows, by least squares over the later part of the run, with the standard error of that,
from the means of blocks, which are less alike than neighbouring looks. Exit 1 when memory, open
files or the processor's seconds a unit grow by more than twice their error and more than is
allowed.

What a run tells, and what MLflow keeps of it, grows with what is told: its bytes a step are shown,
and must not grow themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from tests.proof.forking import forked, typed, waited
from tests.proof.main_job import HELD, RUNS, SOURCE, prepare
from tests.recipes.conftest import MICRO

BLOCKS = 12
# The share of a run's looks that is left out at its beginning: caches fill, allocators settle.
WARM = 0.3
# Growth over a whole run that is nobody's business, by what is counted: bytes, files, shares.
ALLOWED = {"memory": 4e6, "memory of loaders": 4e6, "open files": 1.0, "threads": 1.0}
SHARE_ALLOWED = {"seconds a unit": 0.05, "written a unit": 0.05}


@dataclass
class Looks:
    """What was seen while something ran: the units done, and each quantity at that time."""

    done: list[float] = field(default_factory=list)
    seen: dict[str, list[float]] = field(default_factory=dict)

    def add(self, done: float, **quantities: float) -> None:
        """Take down the quantities after `done` units."""
        self.done.append(done)
        for name, value in quantities.items():
            self.seen.setdefault(name, []).append(value)

    def later(self) -> Looks:
        """Return the looks without the first part."""
        first = int(WARM * len(self.done))
        return Looks(self.done[first:], {name: all_[first:] for name, all_ in self.seen.items()})


@dataclass(frozen=True)
class Growth:
    """How much a quantity grows over a run, with its standard error, beside its mean."""

    name: str
    mean: float
    growth: float
    error: float

    @property
    def flat(self) -> bool:
        """Whether it grows by no more than its error shows, or than is allowed."""
        allowed = ALLOWED.get(self.name, SHARE_ALLOWED.get(self.name, 0.0) * self.mean)
        return self.growth <= max(2 * self.error, allowed)


def growths(looks: Looks) -> list[Growth]:
    """Return the growth of every quantity over the later looks; of totals, of their pace."""
    later = looks.later()
    found = []
    for name, values in later.seen.items():
        if name in SHARE_ALLOWED:
            done, values = pace(later.done, values)
        else:
            done = later.done
        slope, error = fitted(done, values)
        span = later.done[-1] - later.done[0]
        found.append(Growth(name, float(np.mean(values)), slope * span, error * span))
    return found


def pace(done: Sequence[float], totals: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return how much a total grew a unit, between places that are far apart, and those places."""
    ends = np.unique(np.linspace(0, len(done) - 1, BLOCKS + 1).astype(int))
    x, y = np.asarray(done)[ends], np.asarray(totals)[ends]
    moved = np.diff(x) > 0
    return list(((x[1:] + x[:-1]) / 2)[moved]), list((np.diff(y)[moved]) / np.diff(x)[moved])


def fitted(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return the slope of y over x, by least squares of the means of blocks, and its error."""
    if len(x) < 4:
        return 0.0, math.inf
    count = min(BLOCKS, len(x))
    xs = np.array([part.mean() for part in np.array_split(np.asarray(x, float), count)])
    ys = np.array([part.mean() for part in np.array_split(np.asarray(y, float), count)])
    centred = xs - xs.mean()
    spread = float((centred**2).sum())
    if spread == 0:
        return 0.0, math.inf
    slope = float((centred * ys).sum()) / spread
    rest = ys - ys.mean() - slope * centred
    return slope, math.sqrt(float((rest**2).sum()) / (count - 2) / spread)


def own_looks(count: int, work: Callable[[int], object], units: int = 1) -> Looks:
    """Do `work` of so many units `count` times in this process, and look at it a hundred times."""
    looks, process, every = Looks(), psutil.Process(), max(1, count // 100)
    for number in range(count):
        work(number)
        if number % every == every - 1:
            looks.add((number + 1) * units, **state_of([process]))
    return looks


def state_of(processes: Sequence[psutil.Process]) -> dict[str, float]:
    """Return what processes hold together: resident bytes, files, threads, seconds used.

    Resident bytes count what a child still shares with its parent in both. Bytes of their own, the
    alternative, grow for as long as two processes go on writing to what a fork has shared.
    """
    found = {"memory": 0.0, "open files": 0.0, "threads": 0.0, "seconds a unit": 0.0}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            used = process.cpu_times()
            found["memory"] += process.memory_info().rss
            found["open files"] += process.num_fds()
            found["threads"] += process.num_threads()
            found["seconds a unit"] += used.user + used.system
    return found


def train(folder: Path, steps: int) -> Looks:
    """Train the smallest model for so many steps, and look at its processes and its folder."""
    prepare(folder)
    place = folder / "looks"
    environment = {
        "PROOF_FOLDER": str(folder),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    shard = ["shard", SOURCE, "--out", "shards", "--min-side", "32", "--workers", "1"]
    assert waited(forked(place, environment, lambda: typed(shard)), 600) == 0, place.read_text()
    (folder / "weeks.yaml").write_text(_recipe(steps))
    words = ["recipes/train.py", "weeks.yaml"]
    child = forked(place, environment, lambda: typed(words))
    process, looks = psutil.Process(child), Looks()
    while waited(child, 2.0, reap=False) is None and _runs(process):
        done = _steps(folder / RUNS / "base" / "tracking" / "spool.jsonl")
        others = process.children(recursive=True)
        looked = state_of([process, *others])
        looked["memory of loaders"] = state_of(others)["memory"]
        if done and (not looks.done or done > looks.done[-1]):
            looks.add(done, **looked | {"written a unit": _written(folder, place)})
    assert os.waitpid(child, 0)[1] == 0, place.read_text()[-2000:]
    return looks


def _recipe(steps: int) -> str:
    import yaml

    stage = {"name": "base", "rate_weight": 0.5, "batch": 1, "crop": 64, "lr": 1e-4}
    return yaml.safe_dump(
        {
            "name": "weeks",
            "out": RUNS,
            "cca": {"mode": "off"},
            "model": MICRO,
            "data": {"train": "shards", "validation": HELD, "workers": 1},
            "stages": [{**stage, "steps": steps}],
            "evaluate_every": max(1, steps // 40),
            "checkpoint": {"every_steps": max(1, steps // 100), "keep": 2},
            "tracking": {"every_steps": 5, "pictures": 1},
        }
    )


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _steps(spool: Path) -> int:
    """Return the last step that a spool tells of."""
    with contextlib.suppress(OSError), spool.open("rb") as file:
        file.seek(max(0, spool.stat().st_size - 20_000))
        told = file.read().split(b'"step":')[1:]
        return int(told[-1].split(b",")[0].rstrip(b"}\n")) if told else 0
    return 0


def _written(folder: Path, log: Path) -> float:
    """Return the bytes of the spool, MLflow's database and the log, which only grow."""
    spool = folder / RUNS / "base" / "tracking" / "spool.jsonl"
    files = [spool, log, *folder.glob("mlflow.db*")]
    return float(sum(path.stat().st_size for path in files if path.exists()))


def stream(folder: Path, samples: int) -> Looks:
    """Stream so many samples of a corpus that is much smaller, epoch after epoch."""
    from shards import Stream
    from tests.shards.made import numbered, write_split

    write_split(folder, [500, 500, 300], numbered(1300, 16, 16), checksums=True)
    batch = 50
    batches: Iterator[object] = iter(Stream(folder, batch_size=batch, crop=8, epochs=None))
    count = max(8, samples // batch)
    return own_looks(count, lambda number: next(batches), batch)


def serve(folder: Path, requests: int) -> Looks:
    """Let a registered model answer so many requests, to compress and to decompress in turn."""
    import pandas as pd
    import torch
    from PIL import Image

    from pipeline.codec import CCAConfig, CCAModel, save_model

    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    torch.manual_seed(0)
    save_model(CCAModel(CCAConfig(**MICRO)), folder / "model", {"name": "weeks"})  # type: ignore[arg-type]
    assert typed(["register", str(folder / "model"), "--name", "weeks"]) == 0
    import mlflow.pyfunc

    served = mlflow.pyfunc.load_model("models:/weeks/1")
    data = io.BytesIO()
    Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 50).convert("RGB").save(data, "PNG")
    picture = pd.DataFrame({"data": [data.getvalue()]})
    packed = served.predict(picture, params={"operation": "compress"})

    def answer(number: int) -> object:
        way, given = (("compress", picture), ("decompress", packed))[number % 2]
        return served.predict(given, params={"operation": way})

    return own_looks(requests, answer)


PARTS: dict[str, Callable[[Path, int], Looks]] = {
    "steps": train,
    "samples": stream,
    "requests": serve,
}


def main() -> int:
    """Print the table; return 1 if something grows."""
    parser = argparse.ArgumentParser("tests.proof.weeks", description=__doc__.splitlines()[0])
    for name, count in {"steps": 50_000, "samples": 2_000_000, "requests": 10_000}.items():
        parser.add_argument(f"--{name}", type=int, default=count, help="0: leave it out")
    given = vars(parser.parse_args())
    print("| of | quantity | mean | growth over the run | its error | flat |")
    print("|---|---|---|---|---|---|")
    grows = False
    for name, part in PARTS.items():
        if not given[name]:
            continue
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            begun = time.monotonic()
            looks = part(Path(folder), given[name])
        for one in growths(looks):
            row = f"{one.mean:.5g} | {one.growth:+.3g} | {one.error:.2g}"
            flat = "yes" if one.flat else "NO"
            print(f"| {given[name]} {name} | {one.name} | {row} | {flat} |", flush=True)
            grows = grows or not one.flat
        print(f"# {time.monotonic() - begun:.0f} s, {len(looks.done)} looks", flush=True)
    return int(grows)


if __name__ == "__main__":
    sys.exit(main())
