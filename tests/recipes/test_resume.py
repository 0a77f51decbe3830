"""What a run goes on from: not there is not the same as not to be read, and cures in the middle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from recipes.config.load import load_recipe
from recipes.config.settings import RecipeError
from recipes.train import main
from recipes.training.checkpoint import ORIGIN, Checkpoint, examine, found, opened, prune
from recipes.training.health import SpikeWatch
from recipes.training.results import read_run
from recipes.training.resume import differences, find_origins


def rewrite(folder: Path, change: Any) -> None:
    """Let `change` alter what each checkpoint of a run says of itself."""
    for path in sorted(folder.glob("checkpoints/step-*/checkpoint.json")):
        about = json.loads(path.read_text())
        change(about)
        path.write_text(json.dumps(about))


def newer(folder: Path) -> None:
    rewrite(folder, lambda about: about.update(format=2))


def unmounted(folder: Path) -> None:
    for path in folder.glob("checkpoints/step-*/checkpoint.json"):
        path.unlink()
        path.symlink_to("/nonexistent/disk/checkpoint.json")


def all_unmounted(folder: Path) -> None:
    shutil.move(folder / "checkpoints", folder / "elsewhere")
    (folder / "checkpoints").symlink_to("/nonexistent/disk")


def torn(folder: Path) -> None:
    for path in folder.glob("checkpoints/step-*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-9])


def gone(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


@pytest.mark.slow
def test_a_state_that_cant_be_used_is_no_absent_one(write_recipe, caplog) -> None:
    path = write_recipe()
    assert main([str(path), "stages.0.steps=4"]) == 0
    runs = path.parent / "runs"
    pieces = {
        newer: "step-00000004 is of format 2, newer than this version's 1",
        unmounted: "step-00000002 has no checkpoint.json",
        all_unmounted: "checkpoints is a broken link",
        torn: "step-00000004 is damaged",
        gone: "was trained to step 4, and has no checkpoint to train on from",
    }
    for harm, piece in pieces.items():
        copy = path.parent / harm.__name__
        shutil.copytree(runs, copy)
        harm(copy / "base")
        before = sorted(copy.rglob("*"))
        caplog.clear()
        assert main([str(path), f"out={copy}", "stages.0.steps=6"]) == 2, harm
        assert piece in caplog.text
        assert sorted(one for one in copy.rglob("*") if one.name != ".lock") == [
            one for one in before if one.name != ".lock"
        ]
    # The two ways on.
    assert main([str(path), f"out={path.parent / 'newer'}", "stages.0.steps=6", "--anew"]) == 0
    assert read_run(path.parent / "newer" / "base")["step"] == 6
    assert (path.parent / "newer" / "base" / "checkpoints" / "aside-step-00000004").is_dir()
    kept = path.parent / "gone" / "base"
    source = runs / "base" / "checkpoints" / "step-00000002"
    arguments = [str(path), f"out={path.parent / 'gone'}", "--from", str(source)]
    assert main(arguments) == 0
    assert read_run(kept)["from"]["step"] == 2
    assert (kept / "before" / "run.json").exists()


def test_an_error_of_the_disk_is_passed_on(
    tmp_path: Path, write_recipe, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    path = write_recipe()
    run_json = path.parent / "runs" / "base" / "run.json"
    run_json.parent.mkdir(parents=True)
    run_json.write_text("{}")
    real = Path.read_bytes

    def failing(self: Path) -> bytes:
        if self.name == "run.json":
            raise OSError(116, "Stale file handle")
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", failing)
    assert main([str(path)]) == 2
    assert "run.json can't be read (Stale file handle): try again when it can" in caplog.text


@pytest.mark.slow
def test_a_cure_in_the_middle_goes_on_as_a_new_run(write_recipe, store: str, caplog) -> None:
    from mlflow import MlflowClient

    path = write_recipe()
    folder = path.parent / "runs" / "base"
    arguments = [str(path), "checkpoint.keep=9"]
    assert main([*arguments, "stages.0.steps=4"]) == 0
    first = read_run(folder)["run_id"]
    weights = load_file(folder / "checkpoints/step-00000002/state.safetensors")
    changed = [*arguments, "stages.0.lr=1e-4"]
    assert main(changed) == 2
    assert "go on under the new ones, as a new run, by --from STEP" in caplog.text
    assert main([*changed, "stages.0.steps=4", "--from", "2"]) == 0
    second = read_run(folder)
    assert second["run_id"] != first
    about = MlflowClient(store).get_run(second["run_id"]).data.tags
    assert about["mlflow.parentRunId"] == first
    assert about["from"] == "base at step 2"
    assert (folder / "checkpoints" / "aside-step-00000004").is_dir()
    # The state at step 2 is what it began from, and stays what it was.
    again = load_file(folder / "checkpoints/step-00000002/state.safetensors")
    assert all((weights[name] == again[name]).all() for name in weights)
    # A job that is queued again with the same command goes on; so does one without --from.
    shutil.rmtree(folder / "checkpoints/step-00000002")
    assert main([*changed, "stages.0.steps=5", "--from", "2"]) == 0
    assert main(changed) == 0
    assert read_run(folder)["run_id"] == second["run_id"]
    assert found(folder)[-1].step == 6


@pytest.mark.slow
def test_a_step_that_is_no_number_is_cured_as_the_message_says(write_recipe, caplog) -> None:
    path = write_recipe()
    ill = ["stages.0.lr=1", "stages.0.clip=1e12", "stages.0.steps=40", "checkpoint.every_steps=1"]
    assert main([str(path), *ill]) == 1
    failed = read_run(path.parent / "runs" / "base")["failed"]["step"]
    assert "lower stages.base.lr or clip" in caplog.text
    assert f"stages.base.skip=[{failed}]" in caplog.text
    assert main([str(path), "stages.0.steps=3"]) == 0
    assert f"could not take step {failed}" in caplog.text
    assert "lr=0.001 in place of 1.0" in caplog.text


@pytest.mark.slow
def test_a_step_that_is_skipped_leaves_the_weights(write_recipe, caplog) -> None:
    path = write_recipe()
    assert main([str(path), "out=b", "stages.0.skip=[3,4,5]"]) == 0
    assert "step 3 is left out, as the recipe says" in caplog.text
    model = load_file("b/base/model.safetensors")
    assert read_run(Path("b/base"))["step"] == 6
    assert main([str(path), "out=c", "stages.0.steps=3"]) == 0
    three = load_file("c/base/model.safetensors")
    assert all((three[name] == model[name]).all() for name in model)


@pytest.mark.parametrize(
    ("arguments", "piece"),
    [
        (["--from", "9"], "there is no usable checkpoint of step 9 (there are: none)"),
        (["--from", "nowhere"], "nowhere has no usable checkpoint (found: nothing)"),
        (["--from", "runs", "--anew"], "--from and --anew exclude each other"),
    ],
)
def test_what_cant_be_gone_on_from_is_said(
    write_recipe, caplog, arguments: list[str], piece: str
) -> None:
    assert main([str(write_recipe()), *arguments]) == 2
    assert piece in caplog.text


def about_of(run: Any, **changes: Any) -> dict[str, Any]:
    """What a checkpoint of `run` would say, its settings changed; None takes one away."""
    decisive = json.loads(json.dumps(run.decisive())) | changes
    return {"decisive": {name: value for name, value in decisive.items() if value != "absent"}}


def test_settings_of_other_versions(write_recipe) -> None:
    (run,) = load_recipe(write_recipe()).runs()
    assert differences(run, about_of(run)) == {}
    # An older version did not know it: it had the default.
    assert differences(run, about_of(run, **{"cca.early_weight": "absent"})) == {}
    assert differences(run, about_of(run, quantile_lr="absent")) == {}
    # A newer one knew more: only what was set there is another training.
    assert differences(run, about_of(run, gamma=None)) == {}
    assert differences(run, about_of(run, gamma=1.5)) == {"gamma": (1.5, None)}
    assert differences(run, about_of(run, lr=0.5)) == {"lr": (0.5, 1e-3)}


def test_the_checkpoint_before_a_leap_is_kept(tmp_path: Path, write_recipe, caplog) -> None:
    for step in range(0, 100, 10):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        about = {"format": 1, "step": step, "sha256": "", "decisive": {}, "data_digest": ""}
        (folder / "checkpoint.json").write_text(json.dumps({**about, "memory": {}}))
    prune(tmp_path, keep=2, keep_best=True, spikes=[34, 40])
    assert [one.step for one in found(tmp_path)] == [30, 40, 80, 90]
    (run,) = load_recipe(write_recipe(), ["checkpoint.spike=10"]).runs()
    watch = SpikeWatch(run)
    quiet = [
        watch.leapt(step, {"loss": 1.0 + step % 3, "gradient_main": 1.0}) for step in range(99)
    ]
    assert not any(quiet)
    assert not watch.leapt(99, {"loss": 15.0, "gradient_main": 5.0})
    assert watch.leapt(100, {"loss": 2.0, "gradient_main": 11.0})
    assert "a leap at step 100 (gradient_main 11, 10 times its median of 1" in caplog.text


def test_a_folder_that_no_version_wrote_is_found_damaged(tmp_path: Path) -> None:
    for name, text in {"step-1": "[]", "step-2": "{}", "step-3": "\\xff", "step-4": "nul"}.items():
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "checkpoint.json").write_text(text)
    good, bad = examine(tmp_path)
    assert not good
    assert [one.passing for one in bad] == [False] * 4


@pytest.mark.parametrize(
    ("key", "value", "usable"),
    [
        ("memory", {"spikes": 5}, False),
        ("memory", {"best": "low"}, False),
        ("memory", {"of_later": [], "best": 2}, True),
        ("decisive", [], False),
        ("step", 4.5, False),
        ("step", 2, False),  # in the folder of step 1
        ("origin", [], True),
        ("origin", {"step": 3}, True),
    ],
)
def test_a_checkpoint_says_all_that_is_gone_on_from_or_is_damaged(
    tmp_path: Path, key: str, value: object, usable: bool
) -> None:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    about = {"format": 1, "step": 1, "sha256": "0", "decisive": {}, "data_digest": "", "memory": {}}
    (folder / "checkpoint.json").write_text(json.dumps(about | {key: value}))
    found_there = opened(folder)
    assert isinstance(found_there, Checkpoint) == usable
    if isinstance(found_there, Checkpoint) and isinstance(value, dict) and key == "origin":
        assert found_there.origin == {**dict.fromkeys(ORIGIN), "step": 3}


def test_origins_of_several_runs_are_told_apart(write_recipe, tmp_path: Path) -> None:
    common = {"steps": 2, "batch": 4, "crop": 64, "lr": 1e-3}
    recipe = load_recipe(write_recipe(stages=[{"name": "a", "rate_weight": [1, 2], **common}]))
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    about = {"format": 1, "step": 1, "sha256": "0", "decisive": {}, "data_digest": "", "memory": {}}
    for name, fits in {"a/w2": True, "b": False}.items():
        (folder / "checkpoint.json").write_text(json.dumps({**about, "run": {"name": name}}))
        if fits:
            for place in (folder, folder / "checkpoint.json", folder / "state.safetensors"):
                assert list(find_origins(recipe.runs(), str(place), False)) == ["a/w2"]
        else:
            with pytest.raises(RecipeError, match="choose the one that goes on from it by --stage"):
                find_origins(recipe.runs(), str(folder), False)
