"""Steps as graphs: the numbers of eager steps (on a CPU, where they are not recorded)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch import Tensor

from recipes.config.load import load_recipe
from recipes.config.schema import Run
from recipes.training.graphs import Replayed
from recipes.training.module import TrainingModule, build, model_config
from recipes.training.optim import (
    ClippedAdam,
    GuardedAdam,
    NonFiniteError,
    make_optimizer,
)
from recipes.training.schedule import set_learning_rate
from recipes.training.steps import Eager, Metrics, Piece, pieces

FLAGS = torch.zeros(2)


def reduce(totals: Tensor) -> Tensor:
    return torch.cat([totals, FLAGS])


def together(totals: Tensor) -> Tensor:
    dist.all_reduce(totals)
    return torch.cat([totals / dist.get_world_size(), FLAGS])


def given(run: Run, step: int, rank: int = 0, world_size: int = 1) -> Iterator[Piece]:
    """Yield this process's parts of a batch of four crops that are functions of the step."""
    size = 4 // world_size
    seeds = [100 * step + rank * size + i for i in range(size)]
    crops = [torch.rand(3, 64, 64, generator=torch.manual_seed(seed)) for seed in seeds]
    config = model_config(run.model, run.variable_rate)
    return pieces(run, config, torch.stack(crops), step, range(rank * size, (rank + 1) * size))


def replayed(run: Run, world_size: int = 1, module: TrainingModule | None = None) -> Replayed:
    module = build(run).train() if module is None else module
    optimizer = make_optimizer(module.groups(), run, guarded=True)
    assert isinstance(optimizer, GuardedAdam)
    parts = run.recipe.speed.accumulate
    return Replayed(module, optimizer, parts)


def eager(run: Run) -> Eager:
    module = build(run).train()
    parts = run.recipe.speed.accumulate
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    optimizer = make_optimizer(module.groups(), run)
    return Eager(accelerator, module, optimizer, parts)


def train(stepper: Eager | Replayed, run: Run, steps: int) -> list[Metrics]:
    found = []
    for step in range(steps):
        set_learning_rate(optimizer_of(stepper), run.stage, step)
        found.append(stepper.step(given(run, step), reduce))
    return found


def optimizer_of(stepper: Eager | Replayed) -> ClippedAdam:
    inner = stepper.optimizer if isinstance(stepper, Replayed) else stepper.stepper.optimizer
    assert isinstance(inner, ClippedAdam)
    return inner


def distance(one: torch.nn.Module, other: torch.nn.Module) -> float:
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    apart = torch.stack([(a - b).norm() for a, b in pairs]).norm()
    return (apart / torch.stack([a.norm() for a, _ in pairs]).norm()).item()


@pytest.fixture
def run_of(write_recipe) -> Callable[..., Run]:
    def make(*changes: str) -> Run:
        warm = [f"{key}=3" for key in ("stages.0.warmup", "stages.0.rate_warmup", "cca.warmup")]
        changed = [*warm, "stages.0.schedule=cosine", *changes]
        return load_recipe(write_recipe(), changed).runs()[0]

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
    run = run_of(f"speed.accumulate={parts}", *changes)
    one, other = eager(run), replayed(run)
    expected, found = train(one, run, 4), train(other, run, 4)
    for name, value in expected[-1].items():
        assert found[-1][name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert optimizer_of(other).norms == pytest.approx(optimizer_of(one).norms, rel=1e-4)
    assert distance(one.wrapped, other.wrapped) < 1e-5


def state(stepper: Replayed) -> list[Tensor]:
    """Return copies of all that steps change."""
    moments = [value for one in stepper.optimizer.state.values() for value in one.values()]
    return [tensor.clone() for tensor in (*stepper.wrapped.state_dict().values(), *moments)]


def break_picture(stepper: Replayed, piece: Piece) -> Piece:
    x = piece.x.clone()
    x[1, 0, 5, 5] = float("nan")
    return replace(piece, x=x)


def break_weight(stepper: Replayed, piece: Piece) -> Piece:
    return replace(piece, weights=replace(piece.weights, rate=float("inf")))


def break_gradient(stepper: Replayed, piece: Piece) -> Piece:
    parameter = next(stepper.wrapped.model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    return piece


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (break_picture, "the loss is not finite"),
        (break_weight, "the loss is not finite"),
        (break_gradient, "the gradient of main is not finite"),
    ],
)
def test_a_step_that_is_not_finite_is_left_out_and_told(run_of, broken, message: str) -> None:
    run = run_of()
    stepper = replayed(run)
    train(stepper, run, 2)
    before = state(stepper)
    (piece,) = given(run, 2)
    with pytest.raises(NonFiniteError, match=message):
        stepper.step([broken(stepper, piece)], reduce)
    assert all(map(torch.equal, before, state(stepper)))


def test_the_next_step_after_one_left_out_is_taken(run_of) -> None:
    run = run_of()
    one, other = replayed(run), replayed(run)
    for stepper in (one, other):
        train(stepper, run, 2)
    (piece,) = given(run, 2)
    with pytest.raises(NonFiniteError):
        one.step([break_picture(one, piece)], reduce)
    for stepper in (one, other):
        stepper.step(given(run, 2), reduce)
    assert all(map(torch.equal, state(one), state(other)))


def test_steps_left_out_unseen_are_told_later(run_of) -> None:
    run = run_of()
    stepper = replayed(run)
    (piece,) = given(run, 0)
    stepper.launch([break_picture(stepper, piece)], reduce)
    stepper.launch([piece], reduce)
    with pytest.raises(NonFiniteError, match="an earlier step"):
        stepper.optimizer.check()
    stepper.launch([piece], reduce)
    stepper.optimizer.check()


def test_a_closed_optimizer_changes_nothing(run_of) -> None:
    run = run_of()
    stepper = replayed(run)
    train(stepper, run, 2)
    before = state(stepper)
    with stepper.optimizer.closed():
        # Each would change all weights.
        for _ in range(3):
            stepper.optimizer.step()
    assert all(map(torch.equal, before, state(stepper)))
    stepper.optimizer.check()
    stepper.step(given(run, 2), reduce)
    assert not all(map(torch.equal, before, state(stepper)))


def _one_of_two(rank: int, recipe: str, out: str) -> None:
    """Do three steps, then one whose gradient breaks in the second process alone."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    run = load_recipe(Path(recipe), []).runs()[0]
    module = build(run).train()
    if rank == 1:
        # Only the first process's weights count.
        next(module.parameters()).data += 1
    stepper = replayed(run, 2, module)
    found = [stepper.step(given(run, step, rank, 2), together) for step in range(3)]
    torch.save({"weights": module.state_dict(), "found": found}, f"{out}/{rank}.pt")
    before = state(stepper)
    (piece,) = given(run, 3, rank, 2)
    with pytest.raises(NonFiniteError, match="the gradient of main is not finite"):
        stepper.step([break_gradient(stepper, piece) if rank == 1 else piece], together)
    assert all(map(torch.equal, before, state(stepper)))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_step_by_the_mean_of_their_gradients(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe()
    mp.spawn(_one_of_two, (str(recipe), str(tmp_path)), nprocs=2)
    run = load_recipe(recipe, []).runs()[0]
    alone = replayed(run)
    expected = [alone.step(given(run, step), reduce) for step in range(3)]
    for rank in range(2):
        half = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert half["found"][-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-4)
        other = build(run)
        other.load_state_dict(half["weights"])
        assert distance(alone.wrapped, other) < 1e-5
