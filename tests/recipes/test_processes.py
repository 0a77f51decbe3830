"""Training as separate processes: two together, killed ones, asked-to-stop ones, wrong launches."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.codec import load_model
from recipes.config.settings import RecipeError
from recipes.launching.ranks import check_together, processes_asked
from recipes.launching.signals import AGAIN
from recipes.train import main
from recipes.training.checkpoint import found
from recipes.training.results import read_run
from tests.patience import patience, wait_for
from tests.proof.forking import typed

Process = subprocess.Popen[str] | BaseProcess


def losses(store: str, folder: Path) -> list[float]:
    from mlflow import MlflowClient

    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    history = MlflowClient(store).get_metric_history(run_id, "train/loss")
    return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]


def gone_on_without(process: subprocess.Popen[str], path: Path, store: str) -> list[float]:
    """Wait for ZeRO's part of the run in `zero`, go on in this process; return all losses."""
    output, _ = process.communicate(timeout=patience(500))
    assert process.returncode == 0, output
    folder = path.parent / "zero" / "base"
    load_model(folder)
    (folder / "run.json").write_text(json.dumps({**read_run(folder), "done": False}))
    assert main([str(path), "out=zero"]) == 0
    return losses(store, folder)


def differences(a: Path, b: Path) -> list[str]:
    one, other = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.slow
def test_two_processes_train_the_same_models(write_recipe, start_ranks, store: str) -> None:
    common = {"steps": 4, "batch": 4, "crop": 64, "lr": 1e-3}
    one_rate = {"name": "base", "rate_weight": 0.3, **common}
    several = {"name": "several", "variable_rate": [3.5, 1.0, 0.3], **common}
    kinds = ("soap", "muon") if importlib.util.find_spec("pytorch_optimizer") else ("adamw",)
    others = [{**one_rate, "name": kind, "optimizer": kind} for kind in kinds]
    path = write_recipe(stages=[one_rate, several, *others], ema=0.5)
    alone, together = path.parent / "alone", path.parent / "together"
    assert main([str(path), f"out={alone}"]) == 0
    assert ends(start_ranks(path, f"out={together}", "processes=2"))[0] == [0, 0]
    for stage in ("base", "several", *kinds):
        one, two = losses(store, alone / stage), losses(store, together / stage)
        assert len(one) == len(two) == 4
        assert two == pytest.approx(one, rel=1e-3)
        # Before anything was stepped, only the order of additions differs.
        assert two[0] == pytest.approx(one[0], rel=1e-5)
        # The averages of the weights, too: the same to rounding.
        mean, other = (load_file(run / stage / "model.safetensors") for run in (alone, together))
        apart = torch.stack([(mean[name] - other[name]).norm() for name in mean]).norm()
        assert apart < 1e-3 * torch.stack([tensor.norm() for tensor in mean.values()]).norm()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(1, marks=pytest.mark.nightly),
        2,
        pytest.param(3, marks=pytest.mark.nightly),
    ],
)
def test_deepspeed_trains_the_same_model_and_resumes_anywhere(
    write_recipe, launch, zero_file, store: str, stage: int
) -> None:
    path = write_recipe(out="alone")
    assert main([str(path)]) == 0
    one = losses(store, path.parent / "alone" / "base")
    options = ["--config_file", zero_file(stage), "--num_processes", "2"]
    process = launch([path, "out=zero", "stages.0.steps=4"], *options)
    two = gone_on_without(process, path, store)
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_a_process_that_sees_another_folder_is_told_so(write_recipe, start_ranks) -> None:
    path = write_recipe()
    assert main([str(path), "out=runs-0", "stages.0.steps=2"]) == 0
    (path.parent / "runs-0" / "base" / "run.json").unlink()
    codes, output = ends(start_ranks(path, "out=runs-${oc.env:RANK}"))
    assert codes == [1, 1], output
    assert "has no complete checkpoint of step 2, which the first process goes on from" in output


@pytest.mark.slow
@pytest.mark.nightly  # what counts the processes has quick tests
def test_a_launch_of_two_apart_is_refused(write_recipe, launch) -> None:
    process = launch([write_recipe()], "--cpu", "--num_processes", "2")
    output, _ = process.communicate(timeout=patience(300))
    assert process.returncode != 0
    assert "accelerate launch (--num_processes) asked for 2 processes, but 1 would train" in output


@pytest.mark.slow
def test_a_run_killed_at_random_instants_ends_with_the_same_bits(
    write_recipe, start_training
) -> None:
    path = write_recipe()
    arguments = [str(path), "stages.0.steps=24", "checkpoint.every_steps=2"]
    whole, cut = path.parent / "whole", path.parent / "cut"
    assert main([*arguments, f"out={whole}"]) == 0
    draw = random.Random(0)
    kills, done = 0, False
    while not done:
        process = start_training(*arguments, f"out={cut}")
        if kills < 3:
            # Once it gets somewhere, not at a step's end but anywhere.
            wait_for(further(cut / "base", process), "the next checkpoint")
            time.sleep(draw.uniform(0, 0.4))
            process.kill()
        process.join(patience(500))
        assert process.exitcode in (0, -signal.SIGKILL)
        kills, done = kills + (process.exitcode != 0), process.exitcode == 0
    assert kills >= 2
    assert json.loads((cut / "base" / "run.json").read_text())["done"]
    assert differences(whole / "base", cut / "base") == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_it_keeps_its_state_and_says_again(
    write_recipe, start_training, number: signal.Signals
) -> None:
    path = write_recipe()
    process = start_training(path, "stages.0.steps=5000", "checkpoint.every_steps=1")
    folder = path.parent / "runs" / "base"
    wait_for(stepped(folder, process), "the first step")
    os.kill(process.pid, number)
    process.join(patience(300))
    assert process.exitcode == AGAIN
    kept = found(folder)[-1]
    assert 0 < kept.step < 5000
    kept.tensors()


@pytest.mark.slow
def test_all_ranks_end_together_when_one_is_asked_to_stop(write_recipe, start_ranks) -> None:
    path = write_recipe()
    ranks = start_ranks(path, "stages.0.steps=5000", "checkpoint.every_steps=1")
    folder = path.parent / "runs" / "base"
    (first, _), (other, _) = ranks
    wait_for(stepped(folder, first), "the first step")
    os.kill(other.pid, signal.SIGUSR1)
    codes, output = ends(ranks)
    assert codes == [AGAIN, AGAIN], output
    # Each rank says at which step it left, and that step's state is the newest.
    left = re.findall(r"stopped at step (\d+) as asked, state kept", output)
    assert left == [str(newest_step(folder))] * 2, output


@pytest.mark.slow
def test_pipeline_train_passes_signals_and_codes_on(write_recipe, capfd) -> None:
    path = write_recipe()
    pipeline = [str(Path(sys.executable).parent / "pipeline"), "train", str(path)]
    command = [*pipeline, "stages.0.steps=5000", "processes=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    folder = path.parent / "runs" / "base"
    wait_for(begun(folder, process), "the first step")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=patience(300))
    assert process.returncode == AGAIN, errors
    assert "Traceback" not in errors
    assert found(folder)
    assert typed(["train", str(path), "stages.0.batch=99"]) == 2
    assert capfd.readouterr().err.strip().endswith("make batch smaller or shard more pictures")


def test_who_asked_for_how_many(tmp_path: Path) -> None:
    launch = ["python", "/bin/accelerate", "launch"]
    assert processes_asked([*launch, "--num_processes", "4", "recipes/train.py", "x.yaml"]) == 4
    assert processes_asked([*launch, "--num-processes=2", "recipes/train.py"]) == 2
    assert processes_asked([*launch, "recipes/train.py", "--num_processes", "3"]) is None
    assert processes_asked(["bash", "-c", "train.py"]) is None
    config = tmp_path / "config.yaml"
    config.write_text("num_processes: 8\n")
    assert processes_asked([*launch, "--config_file", str(config), "train.py"]) == 8


def test_world_sizes_that_differ_are_refused() -> None:
    check_together(2, 2, {"WORLD_SIZE": "2"}, [])
    check_together(1, None, {}, [])
    for recipe, environment in ((2, {}), (None, {"WORLD_SIZE": "2"})):
        with pytest.raises(RecipeError, match="asked for 2 processes, but 1 would train"):
            check_together(1, recipe, environment, [])


def test_fsdp_is_refused_with_what_to_use(write_recipe, monkeypatch, caplog) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert main([str(write_recipe())]) == 2
    assert "FSDP is not supported: use recipes/accelerate/multi-gpu.yaml" in caplog.text


def ends(ranks: list[tuple[BaseProcess, Path]]) -> tuple[list[int | None], str]:
    """Wait until all ranks have ended; return their exit codes, and what they said."""
    for process, _ in ranks:
        process.join(patience(300))
    return [process.exitcode for process, _ in ranks], "".join(log.read_text() for _, log in ranks)


def further(folder: Path, process: Process) -> Callable[[], bool]:
    """Return whether the run has a newer checkpoint than now, or has ended."""
    before = newest_step(folder)
    return lambda: newest_step(folder) > before or ended(process)


def begun(folder: Path, process: Process) -> Callable[[], bool]:
    """Return whether the run trains, or has ended."""
    return lambda: (folder / "run.json").exists() or ended(process)


def stepped(folder: Path, process: Process) -> Callable[[], bool]:
    """Return whether the run has kept a step's state, or has ended."""
    return lambda: newest_step(folder) > 0 or ended(process)


def ended(process: Process) -> bool:
    if isinstance(process, BaseProcess):
        return not process.is_alive()
    return process.poll() is not None


def newest_step(folder: Path) -> int:
    checkpoints = found(folder)
    return checkpoints[-1].step if checkpoints else 0
