"""Training on a CUDA device: every setting of `speed` and ZeRO give the same losses to rounding."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes.train import main
from tests.patience import patience
from tests.recipes.test_processes import gone_on_without, losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SETTINGS = [
    ("speed.channels_last=false", 1e-3),
    ("speed.fused=false", 1e-3),
    ("speed.accumulate=2", 1e-3),
    ("speed.activation_checkpointing=true", 1e-3),
    ("speed.compile=true", 1e-3),
    ("speed.precision=bf16", 3e-2),
]
# Where steps are graphs: settings, and what they may change.
GRAPHED = [
    ([], 1e-3),
    (["speed.accumulate=2"], 1e-3),
    (["speed.activation_checkpointing=true"], 1e-3),
    (["speed.precision=bf16"], 3e-2),
]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return how far apart two models are, as a share of the first one's norm."""
    apart = torch.stack([(one[name] - other[name]).norm() for name in one]).norm()
    return float(apart / torch.stack([tensor.norm() for tensor in one.values()]).norm())


@pytest.fixture
def plain(write_recipe, store: str) -> tuple[Path, list[float]]:
    """A recipe, and the losses of a run of it under no setting."""
    path = write_recipe()
    assert main([str(path), "out=plain"]) == 0
    return path, losses(store, path.parent / "plain" / "base")


@pytest.mark.parametrize(("setting", "tolerance"), SETTINGS)
def test_a_setting_changes_no_loss(plain, store: str, setting: str, tolerance: float) -> None:
    path, expected = plain
    assert main([str(path), "out=other", setting]) == 0
    assert losses(store, path.parent / "other" / "base") == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("settings", "tolerance"), GRAPHED)
def test_graphs_change_no_loss(plain, store: str, settings: list[str], tolerance: float) -> None:
    path, expected = plain
    assert main([str(path), "out=other", "speed.cuda_graphs=true", *settings]) == 0
    assert losses(store, path.parent / "other" / "base") == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        ["stages.0.distortion=ms-ssim", "stages.0.crop=192"],
        ["stages.0.rate_weight=null", "stages.0.variable_rate=[3.5, 1, 0.3]"],
        ["cca.mode=published"],
        ["cca.mode=off", "ema=0.9", "stages.0.warmup=4"],
    ],
)
def test_graphs_hold_every_kind_of_loss(write_recipe, store: str, changes: list[str]) -> None:
    path = write_recipe()
    found, weights = [], []
    for name, setting in (("eager", "false"), ("graphs", "true")):
        assert main([str(path), f"out={name}", f"speed.cuda_graphs={setting}", *changes]) == 0
        found.append(losses(store, path.parent / name / "base"))
        weights.append(load_file(path.parent / name / "base" / "model.safetensors"))
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert distance(*weights) < 1e-3


def test_a_dry_run_counts_what_graphs_hide(write_recipe, capsys) -> None:
    path = write_recipe()
    said = []
    for setting in ("false", "true"):
        assert main([str(path), "--dry-run", f"speed.cuda_graphs={setting}"]) == 0
        said.append(re.search(r"a step of this process: .* kFLOP a pixel", capsys.readouterr().out))
    assert said[0] is not None
    assert said[1] is not None
    assert said[0].group() == said[1].group()


def test_all_together_and_evaluated(write_recipe, pictures: Path, store: str) -> None:
    path = write_recipe(evaluate_every=3)
    held_out = [f"data.validation={pictures / 'kodak'}", "data.validation_pictures=2"]
    fast = ["speed.precision=bf16", "speed.compile=true", "speed.cuda_graphs=true"]
    assert main([str(path), "out=plain", *held_out]) == 0
    assert main([str(path), "out=fast", *held_out, *fast]) == 0
    one, other = (losses(store, path.parent / name / "base") for name in ("plain", "fast"))
    assert other == pytest.approx(one, rel=3e-2)


@pytest.mark.parametrize("setting", ["false", "true"])
def test_a_run_goes_on_where_it_was_cut(plain, setting: str) -> None:
    path, _ = plain
    graphs = f"speed.cuda_graphs={setting}"
    assert main([str(path), "out=cut", "stages.0.steps=3", graphs]) == 0
    (path.parent / "cut" / "base" / "run.json").unlink()
    assert main([str(path), "out=cut", graphs]) == 0
    names = ("plain", "cut")
    models = [load_file(path.parent / name / "base" / "model.safetensors") for name in names]
    assert distance(*models) < 1e-3


@pytest.mark.slow
def test_the_launch_file_for_one_gpu(plain, launch, root: Path, store: str) -> None:
    path, expected = plain
    process = launch(
        [path, "out=launched"], "--config_file", str(root / "recipes/accelerate/gpu.yaml")
    )
    output, _ = process.communicate(timeout=patience(300))
    assert process.returncode == 0, output
    found = losses(store, path.parent / "launched" / "base")
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_trains_the_same_model(plain, launch, zero_file, store: str, stage: int) -> None:
    path, expected = plain
    options = ["--config_file", zero_file(stage), "--num_processes", "1"]
    process = launch([path, "out=zero", "stages.0.steps=4"], *options)
    assert gone_on_without(process, path, store) == pytest.approx(expected, rel=3e-3)
