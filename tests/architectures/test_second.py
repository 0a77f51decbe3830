"""A second architecture, in one folder: files, tiles, training, reports, registry, serving."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from pipeline.cli.main import main
from pipeline.codec import CodecError, Model, architectures, load_model, save_model
from pipeline.codec.bitstream import read_stream
from pipeline.codec.coding import TensorSource, compress, decompress
from recipes.train import main as train
from tests.architectures.conftest import NAME
from tests.patience import patience


def pipeline(*words: str | Path) -> int:
    """Run a command; return its exit status."""
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in words])
    return int(done.value.code or 0)


def test_a_file_names_its_architecture(second: Model, tmp_path: Path) -> None:
    file = save_model(second, tmp_path / "model.safetensors")
    found = load_model(file)
    assert type(found) is type(second)
    assert found.fingerprint == second.fingerprint
    with safe_open(file, framework="pt") as tensors:
        assert json.loads(tensors.metadata()["config"])["architecture"] == NAME


@pytest.mark.parametrize(("height", "width"), [(1, 1), (63, 65), (96, 41)])
def test_streams_decode_to_what_was_coded(second: Model, height: int, width: int) -> None:
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))
    data = second.compress(x)
    with torch.no_grad():
        expected = second(x).x_hat.clamp(0, 1)
    assert (second.decompress(data) - expected).abs().mean() < 1e-3


def test_any_number_of_threads_gives_the_same_bytes(second: Model) -> None:
    x = torch.rand(1, 3, 200, 170, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = second.analysis(x[..., :192, :160])
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(second.coder().encode(y).words.tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_tiles_follow_from_its_sizes_and_leave_no_seam(second: Model) -> None:
    """Where y_hat depends on no border, because nothing is predicted, neither do the pixels."""
    with torch.no_grad():
        second.get_parameter("hyper_synthesis.4.weight").zero_()
    rows, columns = torch.arange(330.0).view(-1, 1), torch.arange(460.0)
    waves = [0.5 + 0.4 * torch.sin(rows / (9 + c)) * torch.cos(columns / 7) for c in range(3)]
    x = torch.stack(waves)[None]
    side = 256 + 2 * second.config.margin
    data = compress(second, TensorSource(x), max_memory=side**2 * second.config.bytes_per_pixel)
    assert second.config.margin == 64
    assert read_stream(data).header.tile == 256
    whole, tiled = second.decompress(second.compress(x)), decompress(second, data)
    # But for a latent that lies in the middle between two symbols.
    assert ((tiled - whole).abs().amax(1) > 1e-4).float().mean() < 1e-3


def test_an_unknown_architecture_is_refused_by_name(second: Model, tmp_path: Path) -> None:
    file = save_model(second, tmp_path / "model.safetensors")
    architectures.forget(NAME)
    sys.path.pop(0)
    with pytest.raises(CodecError, match=rf"no architecture called '{NAME}'; known are .*cca"):
        load_model(file)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"architecture": "mean-scale", "depth": 3}, "a model has no depth"),
        ({"architecture": "mean-scale", "preset": "huge"}, "no preset 'huge'; it has micro"),
        ({"architecture": "mean-scale", "channels": 0}, "channels must be a whole number from 1"),
        ({"architecture": 3}, "architecture must be a name"),
        ("mean-scale/huge", "no preset 'huge'"),
        ("enormous", "no model called 'enormous'; known are paper, tiny, and"),
    ],
)
def test_what_a_recipe_gets_wrong_is_named(installed: Path, model: object, words: str) -> None:
    with pytest.raises(CodecError, match=words):
        architectures.config_of(model)  # type: ignore[arg-type]


def test_the_same_model_in_three_words(installed: Path) -> None:
    micro = architectures.load(NAME).presets["micro"]
    for model in ("mean-scale/micro", {"architecture": NAME, "preset": "micro"}, micro.to_dict()):
        assert architectures.config_of(model) == micro
    assert architectures.config_of("mean-scale") == type(micro)()


@pytest.fixture
def recipe(tmp_path: Path, pictures: Path) -> Path:
    """A recipe of the second architecture, and shards for it."""
    words = ("shard", pictures / "train", "--out", tmp_path / "shards", "--workers", "1")
    assert pipeline(*words) == 0
    stage = {"name": "base", "rate_weight": 0.3, "steps": 3, "batch": 2, "crop": 64, "lr": 1e-3}
    content = {
        "name": "second",
        "out": str(tmp_path / "runs"),
        "model": "mean-scale/micro",
        "start": "bright",
        "cca": {"mode": "off"},
        "data": {"train": str(tmp_path / "shards"), "workers": 0},
        "stages": [stage],
    }
    path = tmp_path / "second.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cca.mode=adversarial", "mean-scale has no auxiliary model .* set cca.mode=off"),
        ("start=pyramid", "can't start as pyramid, only as: random, bright"),
        ("cca.early_share=0.5", "codes all latents at once"),
    ],
)
def test_what_it_does_not_have_is_said_before_work(
    installed: Path, recipe: Path, override: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert train([str(recipe), override]) == 2
    assert re.search(words, caplog.text)
    assert not (recipe.parent / "runs").exists()


SERVE = """
import sys
import mlflow
import pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
served = mlflow.pyfunc.load_model("models:/second/1")
def run(data, operation):
    given = pd.DataFrame({"data": [data]})
    return served.predict(given, params={"operation": operation})["data"][0]
stream = run(open(sys.argv[2], "rb").read(), "compress")
open(sys.argv[3], "wb").write(run(stream, "decompress"))
print(*(name for name in sys.modules if "meanscale" in name))
"""


@pytest.mark.slow
def test_from_a_recipe_to_a_served_version(
    installed: Path, recipe: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    assert train([str(recipe)]) == 0
    run = tmp_path / "runs" / "base"
    model = load_model(run)
    assert model.config == architectures.load(NAME).presets["micro"]
    assert model.info.recipe == "second"

    (tmp_path / "data").mkdir()
    picture = tmp_path / "data" / "kodim23.png"
    with Image.open(pictures / "kodak" / "kodim23.webp") as image:
        image.convert("RGB").crop((200, 100, 328, 228)).save(picture)
    words = ("evaluate", run, "--data", tmp_path / "data", "--out", "report", "--peers", "jpeg")
    assert pipeline(*words) == 0
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results["models"][0]["architecture"] == NAME

    assert pipeline("register", run, "--name", "second") == 0
    done = subprocess.run(
        [sys.executable, "-c", SERVE, store, str(picture), "served.png"],
        cwd=tmp_path, capture_output=True, text=True, timeout=patience(300), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The version's own copy.
    assert re.fullmatch(
        r"cca_codec_\w+\.codec\.architectures\.mean_scale\.meanscale\n", done.stdout
    )
    x = torch.from_numpy(np.asarray(Image.open(picture))).permute(2, 0, 1)[None].float() / 255
    expected = (model.decompress(model.compress(x))[0] * 255).round().byte().permute(1, 2, 0)
    served = np.asarray(Image.open(io.BytesIO((tmp_path / "served.png").read_bytes())))
    assert np.array_equal(served, expected.numpy())


def test_what_only_this_program_knows_is_not_registered(
    second: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = save_model(second, tmp_path / "model.safetensors")
    sys.path.pop(0)  # known still, but no longer installed
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert pipeline("register", file, "--name", "second") == 2
    assert "known to this program alone" in capfd.readouterr().err
