"""From how much work a second thread helps a step: `python -m tests.benchmarks.threads`.

Training on a CPU takes one thread where a step is little work, and all cores elsewhere; the limit
is `LITTLE` of recipes/training/threads.py, weights times pixels. For steps of growing work this
prints the wall time with one thread over that with all cores, steps in turn: above 1 more threads
are quicker. Wall times need an idle machine; the best of the steps in turn is least disturbed.
"""

from __future__ import annotations

import argparse
import time

import torch

from pipeline.common.machine import usable_cores
from pipeline.evaluation.complexity import count_parameters
from recipes.training.module import build
from tests.benchmarks.train import Step, recipe_step, run_of

SIZES = {
    "micro": "{latent_channels: 12, slices: 3, transform_channels: [8, 8, 8],"
    " transform_blocks: [1, 1, 1], context_channels: 8, context_blocks: 1,"
    " hyper_latent_channels: 8, head_channels: [8, 8]}",
    "tiny": "tiny",
}
# Crop and batch of a step.
STEPS = ((64, 1), (64, 4), (128, 4), (128, 16), (256, 16))


def seconds(step: Step, threads: int) -> float:
    """Return how long a step takes with so many threads."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a line for each kind of step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=12, help="steps with each number of threads")
    given = parser.parse_args()
    cores = usable_cores()
    for size in given.sizes:
        for crop, batch in STEPS:
            run = run_of(SIZES.get(size, size), crop, batch)
            images = torch.randint(0, 256, (batch, 3, crop, crop), dtype=torch.uint8)
            step = recipe_step(run, images)
            for threads in (1, cores):
                seconds(step, threads)
            pairs = [(seconds(step, 1), seconds(step, cores)) for _ in range(given.rounds)]
            one, all_cores = (min(times) for times in zip(*pairs, strict=True))
            work = count_parameters(build(run).model) * batch * crop**2
            print(
                f"{size}, {batch} crops of {crop}: weights times pixels {work:.1e}, one thread"
                f" {one * 1000:.0f} ms, {cores} threads {all_cores * 1000:.0f} ms:"
                f" {one / all_cores:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
