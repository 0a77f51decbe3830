"""Checkpoints that are copied while training goes on: their bytes, failures and kills meanwhile."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.config.load import load_recipe
from recipes.config.schema import Run
from recipes.train import main
from recipes.training.checkpoint import found
from recipes.training.graphs import Replayed
from recipes.training.state import Copies, gather
from recipes.training.steps import Eager
from tests.recipes.test_graphs import eager, reduce, replayed
from tests.recipes.test_graphs import given as pieces_at

OUTS = ("plain", "racing")
KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    kind=st.sampled_from(KINDS),
    layout=st.sampled_from(["plain", "channels last", "turned", "every other", "expanded"]),
)
def test_a_copy_is_equal_whatever_its_layout(
    shape: list[int], kind: torch.dtype, layout: str
) -> None:
    copies = Copies()
    for promise in (copies.later, copies):
        numbers = torch.randn(shape).mul(9).to(kind)
        if layout == "channels last" and numbers.ndim == 4:
            numbers = numbers.to(memory_format=torch.channels_last)
        tensor = laid_out(numbers, layout)
        expected = tensor.clone()
        place = promise("one", tensor)
        copies.make()
        numbers.zero_()
        assert torch.equal(place, expected)
        assert torch.equal(copies("one", expected), expected)


def laid_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return a view of `tensor`."""
    if layout == "turned":
        return tensor.permute(tuple(reversed(range(tensor.ndim))))
    if layout == "every other" and tensor.ndim:
        return tensor[::2]
    return tensor.expand(3, *tensor.shape) if layout == "expanded" else tensor


def test_buffers_are_copied_before_the_next_forward_pass() -> None:
    module, copies = torch.nn.BatchNorm1d(2), Copies()
    optimizer = type("NoState", (), {"kept": lambda self, parameter: {}})()
    state = gather(module, optimizer, copies.later)
    module(torch.ones(3, 2))
    copies.make()
    assert state["weights.running_mean"].tolist() == [0, 0]
    assert state["weights.num_batches_tracked"].item() == 0
    assert state["weights.weight"].tolist() == [1, 1]


def slowed(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Call `before` with its number before each checkpoint's copies are made."""
    real, calls = Copies.make, iter(range(1000))

    def make(copies: Copies) -> None:
        before(next(calls))
        real(copies)

    monkeypatch.setattr(Copies, "make", make)


@pytest.mark.slow
def test_training_goes_on_meanwhile_and_no_byte_differs(
    write_recipe, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(write_recipe(evaluate_every=2, ema=0.9)), "stages.0.steps=3"]
    arguments += ["checkpoint.every_steps=1", "checkpoint.keep=9", "speed.accumulate=2"]
    assert main([*arguments, f"out={OUTS[0]}", "checkpoint.background=false"]) == 0
    # Longer than a step takes, so that each would change what is still to be copied; and so would
    # the evaluation after the second, which puts the average in the weights' place.
    slowed(monkeypatch, lambda number: time.sleep(0.2))
    assert main([*arguments, f"out={OUTS[1]}", f"data.validation={held_out}"]) == 0
    plain, racing = (
        [one.about["sha256"] for one in found(Path(place) / "base")]
        for place in ("plain", "racing")
    )
    assert len(plain) == 3
    assert plain == racing


@pytest.mark.parametrize("make", [eager, replayed])
def test_steppers_say_so_before_they_change_anything(
    write_recipe, make: Callable[[Run], Eager | Replayed]
) -> None:
    run = load_recipe(write_recipe()).runs()[0]
    stepper = make(run)
    weights = list(stepper.wrapped.parameters())
    before, told = [weight.detach().clone() for weight in weights], []

    def unchanged() -> bool:
        return all(map(torch.equal, weights, before))

    stepper.step(pieces_at(run, 0), reduce, lambda: told.append(unchanged()))
    assert told
    assert all(told)
    assert not unchanged()


@pytest.mark.slow
def test_a_copy_that_fails_ends_training_in_one_sentence(
    write_recipe, monkeypatch: pytest.MonkeyPatch, caplog, capsys
) -> None:
    def fails(number: int) -> None:
        if number == 1:
            raise MemoryError

    slowed(monkeypatch, fails)
    assert main([str(write_recipe())]) == 1
    assert "memory" in caplog.text + capsys.readouterr().err
    assert "Traceback" not in caplog.text
    assert [one.step for one in found(Path("runs/base"))] == [2]


@pytest.mark.slow
def test_a_kill_during_the_copy_leaves_the_checkpoint_before(
    write_recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe()

    def killed(number: int) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    process = os.fork()
    if process == 0:
        slowed(monkeypatch, killed)
        os._exit(main([str(path), "out=cut"]))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    (kept,) = found(Path("cut/base"))
    assert kept.step == 2
    kept.tensors()
    assert main([str(path), "out=cut", "--dry-run"]) == 0
