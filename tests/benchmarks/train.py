"""What a training step costs: `python -m tests.benchmarks.train --size tiny --crop 128 --runs 7`.

Prints samples a second, CPU seconds of one thread and the activations kept (on a CUDA device: all
memory) for a step of the adversarial loss: by a straightforward float32 eager loop of the same
model (written below), and by the recipe's settings, one changed at a time; with `--compile` those
of torch.compile too, on a CUDA device also those of CUDA graphs.
Ways take turns, so that what else runs on the machine hits them alike; the median and spread of the
ratios of neighbouring runs are what counts. On a CUDA device it is wall time, synchronised.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch.autograd.graph import saved_tensors_hooks

from pipeline.codec import HyperOutput, Noise
from recipes.config.load import load_recipe
from recipes.config.schema import Run
from recipes.training import speed
from recipes.training.dry_run import Kept
from recipes.training.graphs import Replayed
from recipes.training.losses import bits_per_pixel, reverse_gradient
from recipes.training.module import TrainingModule, build
from recipes.training.optim import GuardedAdam, make_optimizer
from recipes.training.steps import FLAGS, Eager, pieces

# kMAC a pixel of a forward pass at the published size, without the auxiliary model.
PAPER_KMAC = 557 + 557 + 122 + 14
# Pictures in the published schedule: two bases of 56 epochs, six rates of 9, 300,000 each.
PAPER_PICTURES = (2 * 56 + 6 * 9) * 300_000

# Peak TFLOP/s of dense bf16 products, from the makers' data sheets.
DENSE_BF16 = {"H100 PCIe": 756.0, "H100": 989.4, "H200": 989.4, "A100": 312.0}
# What a recipe's `speed` says, one change at a time, then together.
SETTINGS: dict[str, dict[str, Any]] = {
    "recipe, float32": {},
    "accumulate: 2": {"accumulate": 2},
    "activation_checkpointing": {"activation_checkpointing": True},
    "channels_last: false": {"channels_last": False},
    "fused: false": {"fused": False},
    "bf16": {"precision": "bf16"},
}
COMPILED: dict[str, dict[str, Any]] = {
    "compile": {"compile": True},
    "bf16, compile": {"precision": "bf16", "compile": True},
}
GRAPHED: dict[str, dict[str, Any]] = {
    "cuda_graphs": {"cuda_graphs": True},
    "bf16, cuda_graphs": {"precision": "bf16", "cuda_graphs": True},
}
BEST = {"bf16, compile, cuda_graphs": {"precision": "bf16", "compile": True, "cuda_graphs": True}}

PLAIN = "plain float32"

Step = Callable[[], object]


def run_of(size: str, crop: int, batch: int, settings: dict[str, Any] | None = None) -> Run:
    """Return a run like the published ones, at another size and under `settings` of `speed`."""
    # Nothing is left to the machine: what a way does is what its name says.
    changes = [f"model={size}", f"stages.0.crop={crop}", f"stages.0.batch={batch}", "speed={}"]
    changes += [f"speed.{key}={value}" for key, value in (settings or {}).items()]
    return load_recipe("recipes/cca-paper.yaml", changes).runs()[0]


def plain_step(run: Run, images: torch.Tensor) -> Step:
    """Return a step as a first version would have it."""
    module = build(run).to(images.device).train()
    model, auxiliary = module.model, module.auxiliary
    assert auxiliary is not None
    quantiles = {id(p) for p in model.quantiles()}
    weights = [p for p in module.parameters() if p.requires_grad and id(p) not in quantiles]
    groups = [{"params": weights, "lr": 1e-4}, {"params": model.quantiles(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups)
    pixels = images.shape[0] * images.shape[2] * images.shape[3]

    def step() -> None:
        x = images.float() / 255
        optimizer.zero_grad()
        output = model(x)
        hyper = HyperOutput(output.hyper.mean.detach(), output.hyper.scale.detach())
        other = auxiliary(reverse_gradient(output.y, 1.0), hyper, Noise())
        rate = bits_per_pixel(output.likelihoods["y"], pixels)
        side = bits_per_pixel(output.likelihoods["z"], pixels)
        error = (output.x_hat - x).square().mean()
        loss = 0.05 * 255**2 * error + 0.3 * (rate + side) + rate
        loss = loss + bits_per_pixel(other.likelihoods_y, pixels) + model.quantile_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        loss.item()

    return step


def recipe_step(run: Run, images: torch.Tensor) -> Step:
    """Return a step as the training loop does it, from bytes (N, 3, crop, crop)."""
    settings, parts = run.recipe.speed, run.recipe.speed.accumulate
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    module: TrainingModule = build(run).to(images.device).train()
    module.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stubs lack it
    speed.apply(module, settings)
    optimizer = make_optimizer(module.groups(), run, guarded=settings.cuda_graphs is True)
    accelerator = Accelerator(cpu=images.device.type == "cpu")
    stepper = (
        Replayed(module, optimizer, parts)
        if isinstance(optimizer, GuardedAdam)
        else Eager(accelerator, module, optimizer, parts)
    )
    flags = torch.zeros(len(FLAGS), device=images.device)

    def step() -> None:
        # The ways' accelerators share this number.
        accelerator.gradient_accumulation_steps = parts
        given = pieces(run, module.model.config, images, 0, range(len(images)))
        stepper.step(given, lambda totals: torch.cat([totals, flags]))

    return step


def made(name: str, make: Callable[[], Step], on_gpu: bool) -> tuple[Step, str]:
    """Return a step that has been done before, and what memory it needs, in words."""
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_reserved(), time.perf_counter()
    step = make()
    step()
    if on_gpu:
        step()
        used = torch.cuda.max_memory_reserved() - before
        return step, f"memory {_gib(used)}, ready in {time.perf_counter() - start:.0f} s"
    # Compiled code keeps what it keeps out of autograd's sight.
    return step, f"activations {'not seen' if 'compile' in name else _gib(activations(step))}"


def activations(step: Step) -> int:
    """Return the bytes that one step keeps for its backward pass."""
    kept = Kept(())
    with saved_tensors_hooks(kept.pack, kept.unpack):
        step()
    return kept.peak


def seconds(step: Step, device: torch.device) -> float:
    """Return the time of one step: CPU time of this process, or the device's wall time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "paper"), default="tiny")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="one or several")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="compile too (minutes on a CPU)")
    parser.add_argument("--way", action="append", help="measure these ways only (repeat it)")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    for batch in given.batch:
        measure(given, batch, device)


def measure(given: argparse.Namespace, batch: int, device: torch.device) -> None:
    """Measure and print the ways at one batch, without those that the device has no memory for."""
    run = run_of(given.size, given.crop, batch)
    shape = (batch, 3, given.crop, given.crop)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device)
    on_gpu = device.type == "cuda"
    settings = SETTINGS | (COMPILED if given.compile else {}) | (GRAPHED if on_gpu else {})
    settings |= BEST if on_gpu and given.compile else {}
    makers: dict[str, Callable[[], Step]] = {PLAIN: lambda: plain_step(run, images)}
    makers |= {
        name: partial(recipe_step, run_of(given.size, given.crop, batch, keys), images)
        for name, keys in settings.items()
        if given.way is None or name in given.way
    }
    ways: dict[str, Step] = {}
    kept = {}
    for name, make in makers.items():
        try:
            ways[name], kept[name] = made(name, make, on_gpu)
        except torch.OutOfMemoryError:
            print(f"{name}: {batch} crops of {given.crop} need more memory than there is")
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.runs):
        for name, step in ways.items():
            taken[name].append(seconds(step, device))
    report(taken, kept, batch, given.size, given.crop)


def report(
    taken: dict[str, list[float]], kept: dict[str, str], batch: int, size: str, crop: int
) -> None:
    """Print a line for each way of doing a step; ratios are to the first of them."""
    plain = next(iter(taken.values()), [])
    print(f"{size}, {batch} crops of {crop}; torch {torch.__version__}")
    for name, times in taken.items():
        ratios = sorted(a / b for a, b in zip(plain, times, strict=True))
        median = statistics.median(times)
        flops = 6000 * PAPER_KMAC * batch * crop**2 / median / 1e12
        extra = f", {flops:.2f} TFLOP/s{_utilisation(flops)}" if size == "paper" else ""
        print(
            f"{name:32} {median:.3f} s a step, {batch / median:7.2f} samples/s{extra}, ratio"
            f" {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}),"
            f" {kept[name]}"
        )
        if size == "paper" and crop == 256:
            hours = PAPER_PICTURES * median / batch / 3600
            print(f"{'':16} the published schedule at this rate: {hours:,.0f} device hours")


def _utilisation(teraflops: float) -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = [peak for model, peak in DENSE_BF16.items() if model in name]
    return f" ({teraflops / known[0]:.1%} of the dense bf16 peak)" if known else ""


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


if __name__ == "__main__":
    main()
