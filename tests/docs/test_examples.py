"""The examples run as their first lines say, on small data."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.codec import save_model
from pipeline.evaluation import ModelSpec, evaluate
from tests.codec.conftest import SMALL, make_model
from tests.shards.made import encoded, photo, write_tar


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures in `pictures`, and a model's file."""
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.fromarray(photo(number, 64, 80)).save(tmp_path / "pictures" / f"{number}.png")
    save_model(make_model(SMALL), tmp_path / "model.safetensors", {"name": "small"})
    return tmp_path


def test_foreign_tars_train_a_plain_loop(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tar in range(2):
        samples = [(f"{tar}-{n}", encoded(photo(4 * tar + n, 72, 72))) for n in range(4)]
        write_tar(tmp_path / f"photos-{tar}.tar", samples)
    example = load(root / "examples" / "stream_tars.py")
    tars = str(tmp_path / "photos-{0..1}.tar")
    example.main([tars, "--batch-size", "4", "--crop", "64", "--epochs", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "epoch 0, step 1", "epoch 0, step 2", "epoch 1, step 3", "epoch 1, step 4",
    ]  # fmt: skip


def test_a_folder_is_compressed_from_python(
    root: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load(root / "examples" / "compress_folder.py")
    words = [str(folder / "pictures"), str(folder / "streams")]
    example.main([*words, "--model", str(folder / "model.safetensors")])
    told = capsys.readouterr().out
    assert told.startswith("2 written, 0 already there")
    assert sorted(path.name for path in (folder / "streams").iterdir()) == [
        "0.png.cca", "1.png.cca",
    ]  # fmt: skip
    assert "1.png: " in told


def test_the_notebook_reads_a_report(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    with torch.no_grad():
        spec = ModelSpec("small", folder / "model.safetensors")
        evaluate([spec], sorted((folder / "pictures").iterdir()), Path("demo-out/report"), ["jpeg"])
    notebook = json.loads((root / "examples" / "report.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    table, models = names["by_picture"], names["models"]
    assert len(table) == 2
    assert models["bpp"].iloc[0] > 0
