"""What a checkpoint of the published size costs training: the time it waits, and its pace.

    python -m tests.benchmarks.checkpoint [--rounds 5] [--threads 2] [--crop 128] [--batch 1]

The state is that of a stage with the auxiliary model, Adam's moments and an average of the weights.
Some steps are done twice in each round, with a checkpoint after the first of them and without one,
in turn; a round ends when the checkpoint is on the disk. What it took more, of wall time and of the
processor's, is what a checkpoint costs; the share is of a minute, for one a minute. Other work on
the machine stretches wall time: the processor's seconds say more then.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator

from recipes.config.load import load_recipe
from recipes.training.ema import Average, moving
from recipes.training.keeping import Keeper
from recipes.training.module import build
from recipes.training.optim import make_optimizer
from recipes.training.steps import FLAGS, Eager, pieces
from recipes.training.trainer_state import TrainerState
from recipes.training.zero import Replicated

RECIPE = "recipes/imagenet.yaml"
SECONDS_A_ROUND = 12.0
MINUTE = 60.0


class Training:
    """A run at the published size that writes checkpoints into `folder`."""

    def __init__(self, folder: Path, crop: int, batch: int) -> None:
        given = [f"out={folder}", "checkpoint.keep=2", f"stages.0.crop={crop}"]
        self.run = load_recipe(RECIPE, [*given, f"stages.0.batch={batch}"]).runs()[0]
        self.module = build(self.run).train()
        self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(self.module.groups(), self.run)
        self.average = Average(self.module, moving(0.999))
        self.images = torch.randint(0, 256, (batch, 3, crop, crop), dtype=torch.uint8)
        self.stepper = Eager(Accelerator(cpu=True), self.module, optimizer, 1)
        said: Any = SimpleNamespace(info=lambda step: SimpleNamespace(to_dict=dict))
        facts = {"decisive": {}, "data_digest": "", "recipe_digest": ""}
        self.keeper = Keeper(
            self.run, self.module, optimizer, Replicated(), self.average, said, facts
        )
        self.done, self.waited = 0, 0.0

    def step(self) -> None:
        """Do a step as the training loop does it."""
        given = pieces(self.run, self.module.model.config, self.images, 0, range(len(self.images)))
        flags = torch.zeros(len(FLAGS))
        self.stepper.step(given, lambda totals: torch.cat([totals, flags]), self._wait)
        self.done += 1
        self.average.update(self.done)

    def _wait(self) -> None:
        begun = time.perf_counter()
        self.keeper.wait_for_copies()
        self.waited += time.perf_counter() - begun

    def save(self) -> None:
        """Begin a checkpoint as the training loop does."""
        begun = time.perf_counter()
        self.keeper.save(TrainerState(step=self.done))
        self.waited += time.perf_counter() - begun

    def steps(self, count: int, *, checkpoint: bool) -> tuple[float, float]:
        """Do so many steps; return the seconds of wall time, and the processor's."""
        wall, processor = time.perf_counter(), time.process_time()
        for number in range(count):
            self.step()
            if checkpoint and number == 0:
                self.save()
        self.keeper.writer.wait()
        return time.perf_counter() - wall, time.process_time() - processor


def told(values: Sequence[float], digits: int = 2) -> str:
    """Return the median of `values` and their range, in words."""
    return (
        f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to"
        f" {max(values):.{digits}f})"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"rounds": 5, "threads": 2, "crop": 128, "batch": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(Path(folder), given.crop, given.batch)
        training.steps(2, checkpoint=True)  # memory is made, and kept
        alone, _ = training.steps(2, checkpoint=False)
        count = max(2, round(SECONDS_A_ROUND / (alone / 2)))
        waits, walls, processors, steps = [], [], [], []
        for _ in range(given.rounds):
            wall, processor = training.steps(count, checkpoint=False)
            before = training.waited
            more_wall, more_processor = training.steps(count, checkpoint=True)
            waits.append(training.waited - before)
            walls.append(more_wall - wall)
            processors.append(more_processor - processor)
            steps.append(wall / count)
        state = next(Path(folder).rglob("state.safetensors"))
        sys.stdout.write(
            f"{state.stat().st_size / 1e9:.2f} GB, {given.threads} threads, {given.rounds} rounds"
            f" of {count} steps of {told(steps)} s\n"
        )
        training.keeper.close()
    minute = [100 * wall / MINUTE for wall in walls]
    share = [100 * seconds / MINUTE / given.threads for seconds in processors]
    sys.stdout.write(
        "| a checkpoint | median (range) |\n|---|---|\n"
        f"| training waits, s | {told(waits)} |\n"
        f"| more wall time, s | {told(walls)} |\n"
        f"| more of the processor's time, s | {told(processors)} |\n"
        f"| one a minute, of wall time, % | {told(minute)} |\n"
        f"| one a minute, of the processor's time, % | {told(share)} |\n"
    )


if __name__ == "__main__":
    main()
