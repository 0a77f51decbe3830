"""What a recipe would do: resolved, with the model's size and cost, after one step of trying."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import yaml

from pipeline.evaluation.complexity import count_parameters, kmac_per_pixel
from recipes.loop import Trainer
from recipes.meter import memory
from recipes.schema import Run

# A weight, its gradient and Adam's two moments, each float32.
BYTES_PER_WEIGHT = 16
# Multiply-accumulates of forward and backward in units of the forward's, and FLOPs in each.
PASSES, FLOPS_PER_MAC = 3, 2


def describe(runs: Sequence[Run], first: Trainer) -> Iterator[str]:
    """Yield lines on the recipe, its runs and their cost; does one step, and writes nothing."""
    recipe = runs[0].recipe
    yield yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    for run in runs:
        parent = f" from {run.parent.id}" if run.parent else ""
        yield f"run {run.id}: {run.stage.steps} steps of {run.stage.batch}{parent} -> {run.folder}"
    yield from _sizes(first)
    yield from _one_step(first)


def _sizes(trainer: Trainer) -> Iterator[str]:
    module, stage = trainer.module, trainer.run.stage
    total = count_parameters(module)
    kmac, parts = kmac_per_pixel(module.model.eval())
    module.train()
    for name, part in module.model.named_children():
        cost = f"{parts.get(name, 0.0):10.2f} kMAC a pixel"
        yield f"{name:16} {count_parameters(part):12,} parameters {cost}"
    if module.auxiliary is not None:
        yield f"{'auxiliary':16} {count_parameters(module.auxiliary):12,} parameters"
    flops = kmac * 1000 * PASSES * FLOPS_PER_MAC * stage.batch * stage.crop**2
    yield f"a step: {flops / 1e12:.3f} TFLOP without the auxiliary model"
    state = total * BYTES_PER_WEIGHT / 2**30
    yield f"weights, gradients and Adam's state: {state:.2f} GiB, activations not counted"


def _one_step(trainer: Trainer) -> Iterator[str]:
    batch = next(trainer.feed.from_step(0))
    start = time.monotonic()
    found = trainer.try_step(batch)
    seconds = time.monotonic() - start
    trainer.feed.close()
    yield (
        f"one step: {seconds:.2f} s, loss {found['loss']:.4g}, {found['bpp']:.3f} bpp,"
        f" {memory() / 2**30:.2f} GiB at most"
    )
