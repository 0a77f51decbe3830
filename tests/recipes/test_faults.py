"""What goes wrong around training: damage, other jobs, full disks, changed parents and pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from recipes.launching.signals import AGAIN
from recipes.train import main
from recipes.training.checkpoint import best, found

COMMON = {"batch": 4, "crop": 64, "lr": 1e-3}
TWO = [
    {"name": "base", "rate_weight": 0.3, "steps": 2, **COMMON},
    {"name": "fine", "init": "base", "rate_weight": 0.3, "steps": 2, **COMMON},
]


def same(a: Path, b: Path) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (a, b))
    return all(torch.equal(one[name], other[name]) for name in one)


def small_pictures(pictures: Path, folder: Path, count: int) -> Path:
    """Make a folder of parts of the first `count` Kodak pictures."""
    folder.mkdir(exist_ok=True)
    for file in sorted((pictures / "kodak").glob("*.webp"))[:count]:
        with Image.open(file) as picture:
            picture.crop((100, 100, 228, 196)).save(folder / f"{file.stem}.png")
    return folder


def at_call(monkeypatch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Send this process SIGTERM at call `number` of the function at `place`."""
    module, name = place.rsplit(".", 1)
    real: Callable[..., Any] = getattr(sys.modules[module], name)
    calls = []

    def watched(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **options)

    monkeypatch.setattr(place, watched)


def damage(folder: Path) -> None:
    state = folder / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-7])


@pytest.mark.slow
def test_an_evaluation_gives_way_and_is_done_later(
    write_recipe, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(evaluate_every=2)
    arguments = [str(path), f"data.validation={small_pictures(pictures, path.parent / 'v', 3)}"]
    assert main([*arguments, "out=whole"]) == 0
    with monkeypatch.context() as patched:
        # The second picture of the second evaluation.
        at_call(patched, "recipes.training.validate.measure", 5)
        assert main([*arguments, "out=cut"]) == AGAIN
    cut = path.parent / "cut" / "base"
    assert found(cut)[-1].step == 4
    assert found(cut)[-1].cost is None
    assert main([*arguments, "out=cut"]) == 0
    whole = path.parent / "whole" / "base"
    assert same(whole, cut)
    costs = [{one.step: one.cost for one in found(folder)} for folder in (whole, cut)]
    assert costs[0] == costs[1]


@pytest.mark.slow
def test_the_last_evaluation_gives_way_too(
    write_recipe, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(evaluate_every=100)
    arguments = [str(path), f"data.validation={small_pictures(pictures, path.parent / 'v', 2)}"]
    with monkeypatch.context() as patched:
        at_call(patched, "recipes.training.validate.measure", 1)
        assert main(arguments) == AGAIN
    folder = path.parent / "runs" / "base"
    assert not (folder / "model.safetensors").exists()
    assert main(arguments) == 0
    assert found(folder)[-1].cost is not None


@pytest.mark.slow
def test_damaged_checkpoints_do_not_crowd_out_new_ones(
    write_recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe()
    arguments = [str(path), "checkpoint.every_steps=1", "checkpoint.keep=3"]
    assert main(arguments) == 0
    folder = path.parent / "runs" / "base"
    (folder / "run.json").unlink()
    for checkpoint in found(folder)[1:]:
        damage(checkpoint.folder)
    assert [one.step for one in found(folder)] == [4, 5, 6]
    with monkeypatch.context() as patched:
        at_call(patched, "recipes.training.loop.set_learning_rate", 1)
        assert main([*arguments, "checkpoint.keep=2"]) == AGAIN
    assert [one.step for one in found(folder)] == [4, 5]
    assert {path.name for path in (folder / "checkpoints").glob("damaged-*")} == {
        "damaged-step-00000005",
        "damaged-step-00000006",
    }
    assert main(arguments) == 0


@pytest.mark.parametrize("content", ["[1, 2]", '{"format": 1, "step": 10}', "", "null"])
def test_a_checkpoint_that_says_nothing_useful_is_no_absent_one(
    write_recipe, caplog, content: str
) -> None:
    path = write_recipe()
    folder = path.parent / "runs" / "base" / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(content)
    assert main([str(path), "--dry-run"]) == 2
    assert "step-00000010 is damaged" in caplog.text
    assert main([str(path), "--dry-run", "--anew"]) == 0


@pytest.mark.slow
def test_a_folder_that_another_job_trains_in_is_waited_for_then_refused(
    write_recipe, root: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.launching.processes.PATIENCE", 0.5)
    path = write_recipe()
    folder = path.parent / "runs" / "base"
    code = "import sys, pathlib; from pipeline.common.locks import folder_lock\n"
    code += (
        "with folder_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=root,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert main([str(path)]) == 2
    assert re.search(f"base is being written by process {other.pid} on .*: waiting", caplog.text)
    assert re.search(f"base is being written by process {other.pid} on .*: wait until", caplog.text)
    assert not (folder / "run.json").exists()
    other.kill()
    other.communicate()
    assert main([str(path)]) == 0


@pytest.mark.slow
def test_a_child_of_another_parent_is_refused(write_recipe, caplog) -> None:
    path = write_recipe(stages=TWO)
    assert main([str(path)]) == 0
    assert main([str(path)]) == 0
    assert main([str(path), "stages.base.steps=3"]) == 2
    assert "fine began from another base than the one that is, or will be" in caplog.text
    out = path.parent / "runs"
    shutil.rmtree(out / "base")
    caplog.clear()
    assert main([str(path), "stages.base.lr=1e-4"]) == 2
    assert main([str(path), "stages.base.lr=1e-4", "--stage", "base"]) == 0
    assert main([str(path), "stages.base.lr=1e-4"]) == 2
    assert caplog.text.count("fine began from another base") == 2
    shutil.rmtree(out / "fine")
    assert main([str(path), "stages.base.lr=1e-4"]) == 0


@pytest.mark.parametrize(
    ("overrides", "piece"),
    [
        (["stages.fine.frozen=[analysys]"], "stage fine: frozen names analysys"),
        (["stages.fine.frozen=['*']"], "stage fine: frozen leaves nothing of the model to train"),
        (["out=trial.yaml"], "trial.yaml is a file, so nothing can be written to trial.yaml/base"),
        (["stages.base.plateau={patience: 2}"], "plateau needs data.validation or data.held_out"),
        (["model=tiny", "model.slices=3"], "model is 'tiny', a value with no keys of its own"),
        (["stages.base.rate_weight=[1.8, 1.8000001]"], "two that are the same to six digits"),
        (["stages.base.steps=yes"], "stages.0.steps: is a number, not True"),
        (["data.train={shards: 0}"], "data.train.shards: input should be greater than 0"),
    ],
)
def test_what_would_be_found_late_is_found_first(
    write_recipe, caplog, overrides: list[str], piece: str
) -> None:
    path = write_recipe(stages=TWO)
    assert main([str(path), *overrides]) == 2
    assert piece in caplog.text
    assert "function-after" not in caplog.text
    assert not (path.parent / "runs").exists()


@pytest.mark.slow
def test_a_full_disk_ends_training_in_one_sentence(write_recipe, small_disk: Path, caplog) -> None:
    path = write_recipe()
    arguments = [str(path), f"out={small_disk}", "checkpoint.every_steps=1", "checkpoint.keep=9"]
    subprocess.run(["mount", "-o", "remount,size=900k", str(small_disk)], check=True)
    assert main(arguments) == 1
    assert "can't write" in caplog.text
    assert "no space left to write" in caplog.text
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert main(arguments) == 0
    assert main([str(path)]) == 0
    assert same(path.parent / "runs" / "base", small_disk / "base")


@pytest.mark.slow
def test_other_held_out_pictures_forget_the_lowest_cost(
    write_recipe, pictures: Path, tmp_path: Path, caplog
) -> None:
    held_out = small_pictures(pictures, tmp_path / "held-out", 1)
    path = write_recipe(evaluate_every=2)
    arguments = [str(path), f"data.validation={held_out}", "checkpoint.keep=9"]
    assert main([*arguments, "stages.0.steps=4"]) == 0
    small_pictures(pictures, held_out, 2)
    assert main(arguments) == 0
    assert "the held-out pictures have changed" in caplog.text
    checkpoints = found(path.parent / "runs" / "base")
    chosen = best(checkpoints)
    assert chosen is not None
    assert chosen.step == 6
    assert chosen.judged_by != checkpoints[0].judged_by


@pytest.mark.slow
def test_changes_that_change_no_number_are_no_changes(write_recipe) -> None:
    path = write_recipe()
    assert main([str(path), "stages.0.steps=2"]) == 0
    harmless = ["data.block=8", "cca.auxiliary_weight=1.0", "stages.0.final_lr=0.5"]
    assert main([str(path), *harmless, "cca.clamp_warning=0.1"]) == 0
    state = found(path.parent / "runs" / "base")[-1].folder / "state.safetensors"
    about = state.with_name("checkpoint.json")
    assert json.loads(about.read_text())["step"] == 6
    assert stat.S_IMODE(state.stat().st_mode) == stat.S_IMODE(about.stat().st_mode)
