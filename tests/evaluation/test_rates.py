"""A model with several rates draws its curve alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipeline.cli.main import main
from pipeline.codec import CCAModel, load_config, save_model
from pipeline.codec.bitstream import read_header
from tests.evaluation.conftest import SMALL


@pytest.fixture(scope="module")
def place(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a picture, a model for three rates and one with a single rate."""
    folder = tmp_path_factory.mktemp("rates")
    (folder / "data").mkdir()
    with Image.open(pictures / "kodak" / "kodim05.webp") as image:
        image.convert("RGB").crop((0, 0, 128, 96)).save(folder / "data" / "a.png")
    info = {"recipe": "trial", "stage": "all", "distortion": "mse", "rate_weight": None}
    ranged = CCAModel(replace(SMALL, rate_weights=(8, 2, 0.5)))
    ranged.analysis.last.weight.data.mul_(40)
    save_model(ranged, folder / "ranged" / "model.safetensors", info)
    save_model(CCAModel(SMALL), folder / "single" / "model.safetensors", {"rate_weight": 1.0})
    return folder


def evaluate(place: Path, out: Path, *words: str) -> int:
    fixed = ["--data", str(place / "data"), "--out", str(out), "--peers", "", "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *words, *fixed])
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_one_model_is_measured_at_all_rates_of_its_training(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    models = [str(place / name) for name in ("ranged", "single")]
    assert evaluate(place, out, *models) == 0
    results = json.loads((out / "results.json").read_text())
    *ranged, single = results["models"]
    assert [found["rate"] for found in ranged] == [0, 1, 2]
    assert [found["rate_weight"] for found in ranged] == [8, 2, 0.5]
    assert single["rate"] is None
    assert {found["curve"] for found in ranged} == {"trial, all, MSE"} != {single["curve"]}
    assert len({found["fingerprint"] for found in ranged}) == 1
    bpp = [found["bpp"] for found in ranged]
    assert bpp == sorted(set(bpp))
    for found in ranged:
        (stream,) = (out / "streams").glob(f"*ranged-rate-{found['rate']:g}/a.cca")
        assert read_header(stream.read_bytes()).rate == found["rate"]
        assert found["pictures"][0]["bytes"] == stream.stat().st_size
    assert load_config(place / "ranged").rate_weights == (8, 2, 0.5)


def test_rates_between_can_be_measured(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert evaluate(place, out, str(place / "ranged"), "--rates", "0.5,1.75") == 0
    first, second = json.loads((out / "results.json").read_text())["models"]
    assert (first["rate"], second["rate"]) == (0.5, 1.75)
    assert first["rate_weight"] == pytest.approx(4)
    assert first["bpp"] < second["bpp"]
    assert "rate 1.75" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("model", "rates", "sentence"),
    [
        ("ranged", "1,3", "from 0 (fewest bits) to 2 (most) with this model, not 3"),
        ("ranged", "1,many", "1,many is not a list of rates"),
        ("single", "1", "no model here has several rates"),
    ],
)
def test_rates_that_no_model_has_are_refused(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    rates: str,
    sentence: str,
) -> None:
    assert evaluate(place, tmp_path / "report", str(place / model), "--rates", rates) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "report").exists()
