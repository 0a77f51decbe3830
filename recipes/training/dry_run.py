"""Describes what a recipe would do: its runs, the model's size, and the cost of a trial step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import yaml
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pipeline.evaluation.complexity import count_parameters, kmac_per_pixel
from recipes.config.schema import Run
from recipes.training.estimate import estimates
from recipes.training.loop import Trainer
from recipes.training.throughput import memory
from shards import Batch

# A float32; a trained weight has a gradient and two moments of Adam beside it.
BYTES, BESIDE = 4, 3
# Steps that are timed, after one that counts operations, or compiles and records.
TIMED = 3


def describe(runs: Sequence[Run], first: Trainer, price: float | None = None) -> Iterator[str]:
    """Yield lines on the recipe, its runs and their cost; tries a few steps, and writes nothing.

    `price` is what an hour of one process costs.
    """
    recipe = runs[0].recipe
    yield yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    for run in runs:
        parent = f" from {run.parent.id}" if run.parent else ""
        yield f"run {run.id}: {run.stage.steps} steps of {run.stage.batch}{parent} -> {run.folder}"
    yield from _sizes(first)
    if first.state.step >= first.run.stage.steps:
        yield f"{first.run.id} has no steps left to time"
        return
    batches = first.feed.from_step(first.state.step, first.state.order)
    try:
        yield from _one_step(first, next(batches))
        seconds = sorted(_timed(first, batches) for _ in range(TIMED))[TIMED // 2]
    finally:
        first.feed.close()
    processes = first.session.accelerator.num_processes
    yield f"a step: {seconds:.2f} s, waiting for pictures included (median of {TIMED})"
    yield from estimates(runs, first.state.step, seconds, processes, price)


def _timed(trainer: Trainer, batches: Iterator[Batch]) -> float:
    """Return the seconds that the next batch and a step of it take."""
    start = time.monotonic()
    found = trainer.try_step(next(batches))
    assert found
    return time.monotonic() - start


def _sizes(trainer: Trainer) -> Iterator[str]:
    module = trainer.module
    _, parts = kmac_per_pixel(module.model.eval())
    module.train()
    for name, part in module.model.named_children():
        cost = f"{parts.get(name, 0.0):10.2f} kMAC a pixel"
        yield f"{name:16} {count_parameters(part):12,} parameters {cost}"
    if module.auxiliary is not None:
        yield f"{'auxiliary':16} {count_parameters(module.auxiliary):12,} parameters"
    yield f"weights, gradients and Adam's state: {_state_bytes(trainer) / 2**30:.2f} GiB"


def _state_bytes(trainer: Trainer) -> int:
    """Return the bytes of the state between two steps, over all processes if sharded."""
    parameters = list(trainer.module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    copies = BESIDE + trainer.run.averages
    return BYTES * (sum(p.numel() for p in parameters) + copies * trained)


class Kept:
    """Counts the bytes that autograd keeps for the backward pass, weights aside: `peak`."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._weights = {p.untyped_storage().data_ptr() for p in parameters}
        self._uses: Counter[int] = Counter()
        self._now = self.peak = 0

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is kept."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._uses[storage.data_ptr()] += 1
            if self._uses[storage.data_ptr()] == 1:
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        """Count a kept tensor out: the backward pass uses it now."""
        storage = tensor.untyped_storage()
        if self._uses[storage.data_ptr()] > 0:
            self._uses[storage.data_ptr()] -= 1
            if self._uses[storage.data_ptr()] == 0:
                self._now -= storage.nbytes()
        return tensor


def _one_step(trainer: Trainer, batch: Batch) -> Iterator[str]:
    kept = Kept(trainer.module.parameters())
    start = time.monotonic()
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(kept.pack, kept.unpack):
        found = trainer.try_step(batch, graphs=False)
    if trainer.run.speed.cuda_graphs:
        # The first one records the graphs.
        trainer.try_step(batch)
        start = time.monotonic()
        found = trainer.try_step(batch)
    seconds = time.monotonic() - start
    flops, pixels = counter.get_total_flops(), len(batch.keys) * batch.images.shape[-1] ** 2
    yield (
        f"a step of this process: {flops / 1e12:.3f} TFLOP, {flops / pixels / 1e3:.1f} kFLOP a"
        f" pixel, both ways and with the auxiliary model; {kept.peak / 2**30:.2f} GiB of"
        " activations kept for the backward pass"
    )
    yield (
        f"one step: {seconds:.2f} s, loss {found['loss']:.4g}, {found['bpp']:.3f} bpp,"
        f" {memory() / 2**30:.2f} GiB at most"
    )
