"""A run that is interrupted in every way there is ends with the bits of an undisturbed one."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.common import locks
from recipes.launching.owner import AGAIN
from recipes.train import main
from recipes.training import checkpoint, loop
from recipes.training.checkpoint import found
from shards.streaming.source import BatchSource

Do = Callable[[Path], object]


def patched_call(
    patch: pytest.MonkeyPatch, place: tuple[Any, str], number: int, do: Do, run: Path
) -> None:
    """Let call `number` of the function at `place` come after `do`, given the run's folder."""
    owner, name = place
    real: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def called(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            do(run)
        return real(*arguments, **options)

    patch.setattr(owner, name, called)


def ask(number: signal.Signals, run: Path) -> None:
    os.kill(os.getpid(), number)


def ask_and_stall(run: Path) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(500)


def fail(number: int, run: Path) -> None:
    raise OSError(number, os.strerror(number))


def take_over(run: Path) -> None:
    """Hold the folder as another machine does."""
    said = {"host": "node-b", "pid": 5, "job": "", "token": "theirs", "boot": "theirs"}
    (run / ".lease.theirs").write_text(json.dumps(said))
    (run / ".lease.theirs").replace(run / ".lease")


def damage(run: Path) -> None:
    """Cut the newest checkpoint, as a disk may."""
    state = found(run)[-1].folder / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])


STEP, BATCH = (loop, "set_learning_rate"), (BatchSource, "batch")
WRITE, READ = (checkpoint, "write_tensors"), (checkpoint, "file_sha256")
# Where it comes, at which call there, what it is, and the exit code.
INTERRUPTIONS: dict[str, tuple[tuple[Any, str], int, Do, int]] = {
    "preempted": (STEP, 2, partial(ask, signal.SIGUSR1), AGAIN),
    "Ctrl-C": (STEP, 2, partial(ask, signal.SIGINT), 130),
    "the terminal closes": (STEP, 2, partial(ask, signal.SIGHUP), AGAIN),
    "pictures stall": (BATCH, 2, ask_and_stall, AGAIN),
    "shards can't be read": (BATCH, 2, partial(fail, errno.EIO), 1),
    "the disk is full": (WRITE, 1, partial(fail, errno.ENOSPC), 1),
    "the disk fails": (WRITE, 1, partial(fail, errno.EIO), 1),
    "taken over": (STEP, 2, take_over, 1),
    "a checkpoint can't be read": (READ, 1, partial(fail, errno.ESTALE), 2),
    "a checkpoint is cut": (STEP, 2, damage, AGAIN),
}


@pytest.mark.nightly
@pytest.mark.slow
def test_after_every_interruption_the_weights_are_those_of_an_undisturbed_run(
    write_recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.launching.processes._end_at_once", lambda _: None)
    # A dead machine's lease is not watched for a minute and a half here.
    monkeypatch.setattr(locks, "TERM", 0.1)
    monkeypatch.setattr(locks, "SECONDS_BETWEEN_TRIES", 0.02)
    words = [str(write_recipe()), "stages.0.steps=24", "checkpoint.every_steps=2"]
    run = Path("disturbed/base")
    for name, (place, number, do, code) in INTERRUPTIONS.items():
        # A training that has ended lets it pass.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with monkeypatch.context() as patch:
            patched_call(patch, place, number, do, run)
            if do is damage:
                patched_call(patch, STEP, 3, partial(ask, signal.SIGTERM), run)
            assert main([*words, "out=disturbed"]) == code, name
        assert not (run / "model.safetensors").exists(), name
    assert main([*words, "out=disturbed"]) == 0
    assert main([*words, "out=whole"]) == 0
    one, other = (load_file(Path(out, "base/model.safetensors")) for out in ("whole", "disturbed"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
