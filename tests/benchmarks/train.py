"""What a training step costs: `python -m tests.benchmarks.train [--size S] [--crop C] [--runs N]`.

Prints samples a second and CPU seconds of one thread for a step of the adversarial loss: by a
straightforward float32 eager loop of the same model (written below), and by the recipe's settings.
Ways take turns, so that what else runs on the machine hits them alike; the median and spread of the
ratios of neighbouring runs are what counts. On a CUDA device it is wall time, synchronised.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch

from pipeline.codec import HyperOutput, Noise
from recipes import speed
from recipes.load import load_recipe
from recipes.losses import Weights, bits_per_pixel, reverse_gradient
from recipes.module import TrainingModule, build
from recipes.noise import draw_noise
from recipes.optim import make_optimizer
from recipes.schema import Run

WEIGHTS = Weights(rate=0.3, main=1.0, auxiliary=1.0)
# kMAC a pixel of a forward pass at the published size, without the auxiliary model.
PAPER_KMAC = 557 + 557 + 122 + 14
# Pictures in the published schedule: two bases of 56 epochs, six rates of 9, 300,000 each.
PAPER_PICTURES = (2 * 56 + 6 * 9) * 300_000

Step = Callable[[], object]


def run_of(size: str, crop: int, batch: int) -> Run:
    """Return a run like the published ones, at another size."""
    changes = [f"model={size}", f"stages.0.crop={crop}", f"stages.0.batch={batch}"]
    return load_recipe("recipes/cca-paper.yaml", changes).runs()[0]


def plain_step(run: Run, x: torch.Tensor) -> Step:
    """Return a step as a first version would have it."""
    module = build(run).to(x.device).train()
    model, auxiliary = module.model, module.auxiliary
    assert auxiliary is not None
    quantiles = {id(p) for p in model.quantiles()}
    weights = [p for p in module.parameters() if p.requires_grad and id(p) not in quantiles]
    groups = [{"params": weights, "lr": 1e-4}, {"params": model.quantiles(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups, foreach=False)
    pixels = x.shape[0] * x.shape[2] * x.shape[3]

    def step() -> None:
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


def recipe_step(run: Run, x: torch.Tensor, settings: speed.Speed) -> Step:
    """Return a step as the training loop does it, under `settings`."""
    module: TrainingModule = build(run).to(x.device, memory_format=torch.channels_last).train()
    speed.apply(module, settings)
    optimizer = make_optimizer(module.groups(), run.stage, fused=settings.fused)
    x = x.contiguous(memory_format=torch.channels_last)
    size = run.stage.crop

    def step() -> None:
        noise = draw_noise(module.model.config, size, range(x.shape[0]), x.device)
        loss, metrics = module(x, noise, WEIGHTS)
        metrics.tolist()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


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
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=7)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    run = run_of(given.size, given.crop, given.batch)
    x = torch.rand(given.batch, 3, given.crop, given.crop, device=device)
    compiled = device.type == "cuda"
    ways: dict[str, Step] = {
        "plain float32": plain_step(run, x),
        "recipe, float32": recipe_step(run, x, speed.Speed()),
        "recipe, bf16": recipe_step(run, x, speed.Speed(precision="bf16", compile=compiled)),
    }
    for step in ways.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.runs):
        for name, step in ways.items():
            taken[name].append(seconds(step, device))
    report(taken, given.batch, given.size, given.crop)


def report(taken: dict[str, list[float]], batch: int, size: str, crop: int) -> None:
    """Print a line for each way of doing a step."""
    plain = taken["plain float32"]
    print(f"{size}, {batch} crops of {crop}; torch {torch.__version__}")
    for name, times in taken.items():
        ratios = sorted(a / b for a, b in zip(plain, times, strict=True))
        median = statistics.median(times)
        flops = 6000 * PAPER_KMAC * batch * crop**2 / median / 1e12
        extra = f", {flops:.1f} TFLOP/s" if size == "paper" else ""
        print(
            f"{name:16} {median:.3f} s a step, {batch / median:7.2f} samples/s{extra}, ratio"
            f" {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
        if size == "paper" and crop == 256:
            hours = PAPER_PICTURES * median / batch / 3600
            print(f"{'':16} the published schedule at this rate: {hours:,.0f} device hours")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of all together: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
