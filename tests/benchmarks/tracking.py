"""What tracking costs a training step: `python -m tests.benchmarks.tracking` in an empty folder.

Ten metrics a step, 300 steps in turn with and without, repeated; the training thread's own CPU
time, and the same ten through MLflow's client, waiting for the answer, for comparison.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.tracking import Tracker
from pipeline.tracking.store import client

ROUNDS, STEPS, CALLS = 3, 200, 2000
METRICS = {f"metric{i}": float(i) for i in range(10)}


def cost(work: Callable[[int], object], calls: int) -> list[float]:
    """Return this thread's CPU microseconds for each call."""
    found = []
    for index in range(calls):
        before = time.thread_time()
        work(index)
        found.append((time.thread_time() - before) * 1e6)
    return found


def told(name: str, values: list[float]) -> None:
    low, middle, high = np.percentile(values, (5, 50, 95))
    print(f"{name}: median {middle:,.1f} us, 5 to 95 % {low:,.1f} to {high:,.1f} us")


def main() -> None:
    tracker = Tracker.start("benchmark", "cost", params={}, tags={}, folder=Path("benchmark-run"))
    matrix = np.random.default_rng(0).random((300, 300))

    def train(_: int) -> None:
        for _ in range(8):
            matrix @ matrix

    def train_and_log(step: int) -> None:
        train(step)
        tracker.log(METRICS, step)

    without, with_it = [], []
    for _ in range(ROUNDS):
        without += cost(train, STEPS)
        with_it += cost(train_and_log, STEPS)
    told("a step without tracking", without)
    told("a step with tracking", with_it)
    told("one call alone", cost(lambda step: tracker.log(METRICS, step), CALLS))
    before = time.perf_counter()
    assert tracker.finish()
    total = (ROUNDS * STEPS + CALLS) * len(METRICS)
    print(f"{total} metrics delivered {time.perf_counter() - before:.1f} s after the last call")

    where, run_id = client(), tracker.run_id
    from mlflow.entities import Metric

    def waiting(step: int) -> None:
        where.log_batch(run_id, [Metric(k, v, step, step) for k, v in METRICS.items()])

    walls = []
    for step in range(100):
        before = time.perf_counter()
        waiting(step)
        walls.append((time.perf_counter() - before) * 1e6)
    print(f"MLflow's client, waiting: median {statistics.median(walls):,.0f} us")


if __name__ == "__main__":
    main()
