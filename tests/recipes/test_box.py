"""`recipes/box.yaml` rebuilds a model like the shipped one: each time the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from pipeline.codec import load_config, load_model
from pipeline.codec.architectures.small import SmallConfig
from pipeline.codec.box import box_model
from recipes.train import main as train
from recipes.training.export import export_checkpoint

SHORT = {
    "base": {"steps": 3, "batch": 4, "crop": 64, "warmup": 1},
    # MS-SSIM needs more than 160 pixels.
    "finish": {"steps": 2, "batch": 2, "crop": 192},
}


@pytest.fixture
def short(root: Path, photo_shards: Path, tmp_path: Path) -> Path:
    """The recipe as it is, for a small model and a few steps."""
    recipe = yaml.safe_load((root / "recipes/box.yaml").read_text())
    tiny = SmallConfig.tiny().to_dict()
    recipe["model"] = {name: tiny[name] for name in tiny if name != "rate_weights"}
    recipe["data"] |= {"train": str(photo_shards), "test": None, "held_out": 1, "workers": 0}
    for stage in recipe["stages"]:
        stage |= SHORT[stage["name"]]
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.nightly
def test_two_runs_give_one_file_of_half_precision(short: Path, tmp_path: Path) -> None:
    files = []
    for name in ("first", "second"):
        assert train([str(short), f"out={tmp_path / name}", "speed.threads=2"]) == 0
        files.append(tmp_path / f"{name}.safetensors")
        export_checkpoint(tmp_path / name / "finish", files[-1], half=True)
    first, second = map(load_file, files)
    assert first.keys() == second.keys()
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert {str(weights.dtype) for weights in first.values()} == {"float16"}
    model = load_model(files[0])
    assert model.fingerprint == load_model(files[1]).fingerprint
    assert model.fingerprint != load_model(tmp_path / "first" / "finish").fingerprint
    assert model.config.rate_weights == load_config(box_model()).rate_weights
