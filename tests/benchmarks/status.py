"""What a look at a plan takes: `python -m tests.benchmarks.status [--runs N]`, as root.

`pipeline status` of a plan of 20 jobs on a Slurm cluster of its own on this machine: nine stages
and rates with 5,000 records each, an evaluation, eight versions, a promotion, shards. Wall and CPU
time of the whole command (Slurm's own commands included), and of `pipeline --help`, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from orchestration import control
from tests.cluster.conftest import started

RATES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
RECORDS = 5000
RECIPE = f"""
name: benchmark
out: runs
model: tiny
data: {{train: data/shards, test: held-out}}
stages:
  - {{name: base, rate_weight: 1.8, steps: {RECORDS}, batch: 2, crop: 64}}
  - {{name: mse, init: base, rate_weight: {[*RATES]}, steps: {RECORDS}, batch: 2, crop: 64}}
"""
# Held jobs: what is measured does not change meanwhile.
PROFILE = """
engine: slurm
sbatch: [--hold]
signal_seconds: 60
resources: {default: {cpus: 1, memory: 100M, minutes: 5}}
pictures: {source: [photos]}
"""


def make_plan() -> control.Scheduled:
    """Submit the plan from the working folder, its first stage done, with records of each run."""
    for name in ("photos", "held-out", "runs/base"):
        Path(name).mkdir(parents=True)
    Path("recipe.yaml").write_text(RECIPE)
    Path("slurm.yaml").write_text(PROFILE)
    # So that the other runs wait for nothing, and how far they are is read.
    Path("runs/base/run.json").write_text('{"done": true}')
    made = control.make_plan(Path("recipe.yaml"), Path("slurm.yaml"))
    control.schedule(made)
    lines = [
        json.dumps({"kind": "metrics", "time": step, "step": step, "values": {"train/loss": 1.0}})
        for step in range(RECORDS)
    ]
    for job in made.plan.jobs:
        if job.run_folder:
            spool = Path(job.run_folder, "tracking", "spool.jsonl")
            spool.parent.mkdir(parents=True)
            spool.write_text("\n".join(lines) + "\n")
    return made


def cost(words: Sequence[str]) -> tuple[float, float]:
    """Return wall and CPU seconds of a command and of all that it starts."""
    command = Path(sys.executable).with_name("pipeline")
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(command), *words], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return wall, used


def told(name: str, found: Sequence[tuple[float, float]]) -> None:
    wall, used = ([pair[column] for pair in found] for column in (0, 1))
    print(
        f"{name}: wall {statistics.median(wall):.2f} s ({min(wall):.2f} to {max(wall):.2f}),"
        f" CPU {statistics.median(used):.2f} s ({min(used):.2f} to {max(used):.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="how often each command is run")
    runs = parser.parse_args().runs
    with started() as cluster, tempfile.TemporaryDirectory() as place:
        if isinstance(cluster, str):
            sys.exit(f"no Slurm cluster can be started here: {cluster}")
        os.chdir(place)
        made = make_plan()
        looks, starts = [], []
        for _ in range(runs):
            looks.append(cost(["status", made.plan.id]))
            starts.append(cost(["--help"]))
        control.cancel(made.plan, made.folder)
        os.chdir("/")
    told(f"pipeline status, {len(made.plan.jobs)} jobs", looks)
    told("pipeline --help", starts)


if __name__ == "__main__":
    main()
