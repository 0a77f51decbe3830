"""What training waits for when a checkpoint of the published size is made.

    python -m tests.benchmarks.checkpoint [--rounds 5] [--threads 2]

The state is that of a stage with the auxiliary model, Adam's moments and an average of the weights.
It is copied for the background, which then writes it: into memory of its own in the order of the
indices, as a state that is exported is; and into the memory that checkpoints keep. Seconds of all
threads, and of wall time, which other work on the machine stretches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from recipes.config.load import load_recipe
from recipes.training.ema import Average
from recipes.training.module import build
from recipes.training.optim import make_optimizer
from recipes.training.state import Copies, Copy, contiguous, gather

RECIPE = "recipes/imagenet.yaml"


def state() -> Callable[[Copy], Mapping[str, Tensor]]:
    """Return what copies the whole state of a run at the published size."""
    run = load_recipe(RECIPE, ["ema=0.999"]).runs()[0]
    module = build(run)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(module.groups(), run)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    average = Average(module, 0.999)
    return lambda copy: gather(module, optimizer, copy) | average.gather(copy)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    copy_state, kept = state(), Copies()
    size = sum(tensor.numel() * tensor.element_size() for tensor in copy_state(kept).values())
    sys.stdout.write(f"{size / 1e9:.2f} GB, {given.threads} threads, {given.rounds} rounds\n")
    sys.stdout.write(
        "| copies | seconds of the processor | seconds of wall time |\n|---|---|---|\n"
    )
    ways: dict[str, Copy] = {"in order, into new memory": contiguous, "into kept memory": kept}
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, copy in ways.items():
            processor, wall = time.process_time(), time.perf_counter()
            made = copy_state(copy)
            seen[name].append((time.process_time() - processor, time.perf_counter() - wall))
            del made
    for name, pairs in seen.items():
        told = (f"{statistics.median(all_):.2f} ({min(all_):.2f} to {max(all_):.2f})"
                for all_ in zip(*pairs, strict=True))  # fmt: skip
        sys.stdout.write(f"| {name} | {' | '.join(told)} |\n")


if __name__ == "__main__":
    main()
