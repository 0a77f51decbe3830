"""Training in this process: what a run leaves behind, what is skipped, refused and resumed."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.codec import load_auxiliary, load_model, round_to_half
from pipeline.common.targets import TargetError
from recipes.config.settings import RecipeError
from recipes.train import main
from recipes.training import profiling
from recipes.training.checkpoint import found
from recipes.training.export import export_checkpoint

STAGES = [
    {"name": "base", "rate_weight": 0.3, "steps": 4, "batch": 4, "crop": 64, "lr": 1e-3},
    {"name": "mse", "init": "base", "rate_weight": [0.3, 3.5], "steps": 2, "batch": 4, "crop": 64},
    {
        "name": "ms-ssim",
        "init": "mse",
        "rate_weight": [3.5],
        "distortion": "ms-ssim",
        "steps": 2,
        "batch": 2,
        "crop": 192,
    },
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
def test_stages_train_in_order_and_leave_models(write_recipe, held_out: Path, capsys) -> None:
    data = {"validation": str(held_out), "validation_pictures": 1}
    path = write_recipe(stages=STAGES)
    overrides = [f"data.{key}={value}" for key, value in data.items()]
    assert main([str(path), *overrides]) == 0
    runs = path.parent / "runs"
    for identity in ("base", "mse/w0.3", "mse/w3.5", "ms-ssim/w3.5"):
        state = json.loads((runs / identity / "run.json").read_text())
        assert state["done"]
        assert state["run_id"]
        assert (runs / identity / "recipe.yaml").is_file()
    model = load_model(runs / "ms-ssim" / "w3.5")
    assert model.info.name == "ms-ssim/w3.5"
    assert model.info.rate_weight == 3.5
    assert model.info.distortion == "ms-ssim"
    assert model.info.step == 2
    assert model.info.parent == "mse/w3.5"
    assert len(model.info.data_digest) == len(model.info.recipe_digest) == 64
    assert load_auxiliary(runs / "base") is not None
    # The child began where its parent ended, not from random weights.
    parent, child = weights(runs / "base"), weights(runs / "mse/w0.3")
    name = "model.synthesis.last.weight"
    assert float((parent[name] - child[name]).abs().max()) < 2.5 * 2 * 1e-4
    before = (runs / "base" / "model.safetensors").stat().st_mtime_ns
    assert main([str(path), *overrides]) == 0
    assert (runs / "base" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_resumed_in_the_middle_ends_with_the_same_bits(write_recipe) -> None:
    path = write_recipe()
    whole, cut = path.parent / "whole", path.parent / "cut"
    assert main([str(path), f"out={whole}"]) == 0
    assert main([str(path), f"out={cut}", "stages.0.steps=3"]) == 0
    # Fewer steps wrote a model; the same run with more goes on from its last checkpoint.
    (cut / "base" / "run.json").unlink()
    assert main([str(path), f"out={cut}"]) == 0
    assert_same(whole / "base", cut / "base")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(write_recipe) -> None:
    path = write_recipe()
    whole, cut = path.parent / "whole", path.parent / "cut"
    assert main([str(path), f"out={whole}"]) == 0
    assert main([str(path), f"out={cut}", "stages.0.steps=4"]) == 0
    (cut / "base" / "run.json").unlink()
    newest = found(cut / "base")[-1]
    assert newest.step == 4
    state = newest.folder / "state.safetensors"
    damaged = bytearray(state.read_bytes())
    damaged[-5] ^= 1
    state.write_bytes(damaged)
    assert main([str(path), f"out={cut}"]) == 0
    assert_same(whole / "base", cut / "base")


@pytest.mark.slow
def test_loader_processes_and_parts_do_not_change_what_is_seen(write_recipe) -> None:
    path = write_recipe()
    alone, helped = path.parent / "alone", path.parent / "helped"
    assert main([str(path), f"out={alone}"]) == 0
    assert main([str(path), f"out={helped}", "data.workers=1"]) == 0
    assert_same(alone / "base", helped / "base")
    parts = path.parent / "parts"
    assert main([str(path), f"out={parts}", "speed.accumulate=2"]) == 0
    one, other = weights(alone / "base"), weights(parts / "base")
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_stages_with_the_same_draws_see_the_same(write_recipe) -> None:
    stage = {"rate_weight": 0.3, "steps": 2, "batch": 4, "crop": 64}
    stages = [
        {"name": "one", "draws": "shared", **stage},
        {"name": "other", "draws": "shared", **stage},
        {"name": "alone", **stage},
    ]
    path = write_recipe(stages=stages)
    assert main([str(path)]) == 0
    out = path.parent / "runs"
    assert_same(out / "one", out / "other")
    one, alone = weights(out / "one"), weights(out / "alone")
    assert any(not torch.equal(one[name], alone[name]) for name in one)


@pytest.mark.slow
def test_checkpoints_are_pruned(write_recipe) -> None:
    path = write_recipe()
    assert main([str(path), "checkpoint.every_steps=1", "checkpoint.background=false"]) == 0
    folders = sorted((path.parent / "runs" / "base" / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize(
    ("overrides", "piece"),
    [
        (["stages.0.stepz=3"], "unknown key stages.0.stepz (did you mean steps?)"),
        (["stages.0.batch=99"], "a batch of 99 needs as many pictures"),
        (["data.train=nowhere"], "data.train: "),
        (["data.validation=nowhere"], "data.validation: "),
        (["speed.accumulate=3"], "can't be shared by 1 processes in 3 parts"),
        (["speed.cuda_graphs=true"], "speed.cuda_graphs needs a CUDA device"),
        (
            ["speed.cuda_graphs=true", "speed.fused=false"],
            "cuda_graphs needs fused",
        ),
        (["model.slices=1"], "model: slices must be"),
        (["model.slicez=1"], "a model has no slicez"),
        (["stages.0.frozen=[nothing]"], "frozen names nothing"),
        (["processes=2"], "asked for 2 processes, but 1 would train here"),
        (["--stage", "other"], "no run is of --stage other"),
        (["--rate-weight", "9"], "no run is of --rate-weight 9"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    write_recipe, caplog, overrides: list[str], piece: str
) -> None:
    path = write_recipe()
    assert main([str(path), *overrides]) == 2
    assert piece in caplog.text
    assert not (path.parent / "runs").exists()


@pytest.mark.slow
def test_other_settings_or_shards_since_the_checkpoint(write_recipe, pictures, caplog) -> None:
    path = write_recipe(stages=STAGES[:2])
    assert main([str(path), "--stage", "base"]) == 0
    # A trained run is no exception, and a later stage's is found before an earlier one trains.
    assert main([str(path), "stages.0.lr=1e-5"]) == 2
    assert "begun with other settings (lr was 0.001 and is 1e-05)" in caplog.text
    (path.parent / "runs" / "base" / "run.json").unlink()
    early = {"name": "early", "rate_weight": 1.0, "steps": 2, "batch": 4, "crop": 64}
    path = write_recipe(stages=[early, *STAGES[:2]])
    from shards.options import Options
    from shards.run import shard

    shard([str(pictures / "kodak")], path.parent / "other", Options(split="train"), workers=1)
    assert main([str(path), f"data.train={path.parent / 'other'}"]) == 2
    assert "have changed since" in caplog.text
    assert not (path.parent / "runs" / "early").exists()


@pytest.mark.slow
def test_a_profile_leaves_a_trace_and_more_steps_go_on(write_recipe, monkeypatch) -> None:
    # One step that is recorded instead of three: reading events is slow.
    monkeypatch.setattr(profiling, "SKIPPED", 0)
    monkeypatch.setattr(profiling, "WARMING", 1)
    monkeypatch.setattr(profiling, "RECORDED", 1)
    path = write_recipe()
    folder = path.parent / "runs" / "base"
    assert main([str(path), "stages.0.steps=2"]) == 0
    assert main([str(path), "--profile", "stages.0.steps=5"]) == 0
    (trace,) = (folder / "profile").glob("*.json.gz")
    assert trace.name == "step-00000002-rank-0.json.gz"
    with gzip.open(trace) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "aten::convolution_backward" in names
    assert "aten::convolution" in trace.with_name("step-00000002-rank-0.txt").read_text()
    exported, checkpoint = export_checkpoint(folder, path.parent / "exported")
    assert checkpoint.step == 5
    assert load_model(exported).fingerprint == load_model(folder).fingerprint
    half, _ = export_checkpoint(folder, path.parent / "half", half=True)
    rounded = load_model(folder)
    round_to_half(rounded)
    assert load_model(half).fingerprint == rounded.fingerprint
    assert half.stat().st_size < 0.6 * exported.stat().st_size
    with pytest.raises(RecipeError, match="no complete checkpoint with a held-out cost"):
        export_checkpoint(folder, path.parent / "best", best=True)
    export_checkpoint(folder, path.parent / "exported")  # its own, again
    with pytest.raises(TargetError, match="is what export reads"):
        export_checkpoint(folder, folder, force=True)  # the run's own model
    exported.write_text("precious")
    with pytest.raises(TargetError, match="--force"):
        export_checkpoint(folder, exported)
    assert exported.read_text() == "precious"
    export_checkpoint(folder, exported, force=True)
    about = found(folder)[-1].about
    assert about["run"]["run_id"] == json.loads((folder / "run.json").read_text())["run_id"]
    assert about["recipe"]["name"] == "trial"


@pytest.mark.slow
def test_a_stage_alone_needs_its_parent(write_recipe, caplog) -> None:
    path = write_recipe(stages=STAGES[:2])
    assert main([str(path), "--stage", "mse"]) == 2
    assert "train stage base first" in caplog.text
    assert main([str(path), "stages.1.model=tiny"]) == 2
    assert "another architecture" in caplog.text
    assert main([str(path), "--stage", "base"]) == 0
    assert main([str(path), "--stage", "mse", "--rate-weight", "3.5"]) == 0
    assert (path.parent / "runs" / "mse" / "w3.5" / "model.safetensors").is_file()
    assert not (path.parent / "runs" / "mse" / "w0.3").exists()


def test_dry_run_describes_and_writes_nothing(write_recipe, capsys) -> None:
    path = write_recipe(stages=STAGES[:2])
    assert main([str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "run mse/w3.5: 2 steps of 4 from base -> " in out
    assert re.search(r"analysis +[\d,]+ parameters +[\d.]+ kMAC a pixel", out)
    assert re.search(r"auxiliary +[\d,]+ parameters", out)
    flops = re.search(r"([\d.]+) kFLOP a pixel", out)
    forward = sum(float(cost) for cost in re.findall(r"([\d.]+) kMAC a pixel", out))
    # Both ways, 2 FLOPs a MAC, and the auxiliary model's context beside the model.
    assert 1.5 * 2 * forward < float(flops[1]) < 6 * 2 * forward
    assert "GiB of activations kept for the backward pass" in out
    assert "one step: " in out
    assert not (path.parent / "runs").exists()
