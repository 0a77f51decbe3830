"""Estimates how long runs will take and what they cost, from the speed of a few steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.common.progress import duration
from recipes.config.schema import Run
from recipes.config.stage import Stage
from recipes.training.checkpoint import FOLDER, PREFIX


def estimates(
    runs: Sequence[Run], first: int, seconds: float, processes: int, price: float | None
) -> Iterator[str]:
    """Yield a line for each of `runs`, and one for all, of the time that their steps will take.

    Args:
        runs: what is to be trained; those of other crops and batches are taken to need time by
            their pixels, those of other models as much as the first.
        first: the steps that `runs[0]` has done.
        seconds: what a step of `runs[0]` takes from there.
        processes: how many train together.
        price: what an hour of one process costs; None: nobody asked.
    """
    here = runs[0].stage
    shape = here.shape(min(first, here.steps - 1))
    each = seconds / ((shape.batch or here.batch) * shape.crop**2)
    whole = 0.0
    for number, run in enumerate(runs):
        done = first if number == 0 else _done(run)
        time = each * pixels(run.stage, done)
        whole += time
        yield f"time of {run.id}: {duration(time)} for {run.stage.steps - done:,} steps"
    hours = whole * processes / 3600
    cost = "" if price is None else f", {hours * price:,.2f} at {price:g} an hour"
    together = "" if processes == 1 else f" of {processes} processes"
    yield (
        f"time in all: {duration(whole)}{together}, {hours:,.2f} process hours{cost};"
        " evaluations, checkpoints and the first compilation not counted"
    )


def pixels(stage: Stage, done: int = 0) -> int:
    """Return the pixels of a stage's crops from step `done` on, over all processes."""
    starts = [start for start, _ in stage.spans]
    total = 0
    for (start, shapes), end in zip(stage.spans, [*starts[1:], stage.steps], strict=True):
        begin, end = max(start, done), min(end, stage.steps)
        for turn, one in enumerate(shapes):
            # Steps begin + k, ... that have this shape in turn.
            skip = (turn - (begin - start)) % len(shapes)
            count = max(0, -(-(end - begin - skip) // len(shapes)))
            total += count * (one.batch or stage.batch) * one.crop**2
    return total


def _done(run: Run) -> int:
    """Return the steps that a run has done: all, or those of its newest checkpoint."""
    if run.complete:
        return run.stage.steps
    names = [path.name for path in (run.folder / FOLDER).glob(f"{PREFIX}*")]
    steps = [int(name.removeprefix(PREFIX)) for name in names if name[len(PREFIX) :].isdecimal()]
    return min(max(steps, default=0), run.stage.steps)
