"""Steps as graphs: the numbers of eager steps (on a CPU, where they are not recorded)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from recipes.graphs import Replayed
from recipes.load import load_recipe
from recipes.losses import weights_at
from recipes.module import build
from recipes.noise import draw_noise, draw_rates
from recipes.optim import NonFiniteError, make_optimizer, set_learning_rate
from recipes.schema import Run
from recipes.steps import Eager, Piece

FLAGS = torch.zeros(2)
RATES = {"rate_weight": None, "variable_rate": [3.5, 1.0, 0.3]}


def reduce(totals: Tensor) -> Tensor:
    return torch.cat([totals, FLAGS])


def together(totals: Tensor) -> Tensor:
    dist.all_reduce(totals)
    return torch.cat([totals / dist.get_world_size(), FLAGS])


def pieces(run: Run, step: int, parts: int, rank: int = 0, world_size: int = 1) -> list[Piece]:
    """Return this process's part of a batch of four crops that are functions of the step."""
    config, size = build(run).model.config, 4 // world_size // parts
    found = []
    for part in range(parts):
        first = (rank * parts + part) * size
        seeds = [100 * step + first + i for i in range(size)]
        crops = [torch.rand(3, 64, 64, generator=torch.manual_seed(seed)) for seed in seeds]
        rates = draw_rates(config, seeds, torch.device("cpu"))
        noise = draw_noise(config, 64, seeds, torch.device("cpu"))
        found.append(Piece(torch.stack(crops), noise, weights_at(step, run, rates), rates))
    return found


def trained(run: Run, steps: int, parts: int, rank: int = 0, world_size: int = 1):
    """Train by replayed steps; return the module, its optimizer and what each step found."""
    module = build(run).train()
    optimizer = make_optimizer(module.groups(), run.stage, fused=True, guarded=True)
    stepper = Replayed(module, optimizer, 4 // world_size // parts, parts)
    found = []
    for step in range(steps):
        set_learning_rate(optimizer, run.stage, step)
        given = pieces(run, step, parts, rank, world_size)
        found.append(stepper.step(given, together if world_size > 1 else reduce))
    return module, optimizer, found


def trained_eagerly(run: Run, steps: int, parts: int):
    from accelerate import Accelerator

    module = build(run).train()
    optimizer = make_optimizer(module.groups(), run.stage, fused=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    stepper = Eager(accelerator, module, optimizer, parts)
    found = []
    for step in range(steps):
        set_learning_rate(optimizer, run.stage, step)
        found.append(stepper.step(pieces(run, step, parts), reduce))
    return module, optimizer, found


def distance(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    apart = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    return (apart / torch.stack([a.norm() for a, _ in pairs]).norm()).item()


@pytest.fixture
def run_of(write_recipe) -> Callable[..., Run]:
    def make(*changes: str) -> Run:
        warm = ["stages.0.warmup=3", "cca.warmup=3", "stages.0.schedule=cosine"]
        return load_recipe(write_recipe(), [*warm, *changes]).runs()[0]

    return make


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["cca.mode=off"],
        ["cca.mode=published"],
        ["stages.0.rate_weight=null", "stages.0.variable_rate=[3.5, 1, 0.3]"],
        ["stages.0.frozen=[analysis]"],
    ],
)
def test_replayed_steps_are_eager_steps(run_of, changes: list[str], parts: int) -> None:
    run = run_of(*changes)
    one, optimizer, expected = trained_eagerly(run, 4, parts)
    other, guarded, found = trained(run, 4, parts)
    for name, value in expected[-1].items():
        assert found[-1][name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert guarded.norms == pytest.approx(optimizer.norms, rel=1e-4)
    assert distance(one, other) < 1e-5


@pytest.mark.parametrize("broken", ["picture", "weight"])
def test_a_step_that_is_not_finite_is_left_out_and_told(run_of, broken: str) -> None:
    run = run_of()
    module, optimizer, _ = trained(run, 2, 1)
    stepper = Replayed(module, optimizer, 4, 1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    (piece,) = pieces(run, 2, 1)
    x = piece.x.clone()
    if broken == "picture":
        x[1, 0, 5, 5] = float("nan")
    else:
        piece = replace(piece, weights=replace(piece.weights, rate=float("inf")))
    with pytest.raises(NonFiniteError, match="not finite"):
        stepper.step([replace(piece, x=x)], reduce)
    assert all(torch.equal(before[name], now) for name, now in module.state_dict().items())
    now = [s["exp_avg"] for s in optimizer.state.values()]
    assert all(map(torch.equal, moments, now))
    stepper.step(pieces(run, 2, 1), reduce)
    assert not all(torch.equal(before[name], now) for name, now in module.state_dict().items())


def _train_half(rank: int, recipe: str, meeting: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    run = load_recipe(Path(recipe), []).runs()[0]
    module, _, found = trained(run, 3, 1, rank, 2)
    torch.save({"weights": module.state_dict(), "found": found}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_step_by_the_mean_of_their_gradients(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe()
    mp.spawn(_train_half, (str(recipe), str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    run = load_recipe(recipe, []).runs()[0]
    one, _, expected = trained(run, 3, 1)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for half in halves:
        assert half["found"][-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-4)
        other = build(run)
        other.load_state_dict(half["weights"])
        assert distance(one, other) < 1e-5
