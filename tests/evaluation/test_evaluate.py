"""`pipeline evaluate` from models and pictures to the folder that it writes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.cli.main import main
from pipeline.codec import ModelInfo, load_model
from pipeline.evaluation import EvaluationError, ModelSpec, evaluate, psnr
from pipeline.evaluation.learned import curve_name, tell_curves_apart, to_picture
from pipeline.evaluation.pictures import read_picture
from pipeline.evaluation.plots import main as draw
from pipeline.evaluation.results import ModelResult
from tests.evaluation.conftest import model


@pytest.fixture(scope="module")
def data(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts of photographs, one of them too small for MS-SSIM."""
    folder = tmp_path_factory.mktemp("data")
    for name, box in {
        "kodim23": (180, 90, 381, 260),
        "kodim05": (0, 0, 192, 192),
        "kodim15": (0, 0, 33, 17),
    }.items():
        with Image.open(pictures / "kodak" / f"{name}.webp") as image:
            image.convert("RGB").crop(box).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def done(
    data: Path, model_files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The folder of one evaluation, and its results.json."""
    out = tmp_path_factory.mktemp("evaluation") / "report"
    specs = [ModelSpec(path.parent.name, path) for path in model_files]
    evaluate(specs, sorted(data.iterdir()), out, ["jpeg", "webp"], device="cpu")
    return out, json.loads((out / "results.json").read_text())


def test_everything_promised_is_there(done: tuple[Path, dict[str, Any]]) -> None:
    out, results = done
    names = {path.name for path in out.iterdir()}
    assert names == {
        "results.json", "results.csv", "rd-curve.png", "rd-curve.svg", "report.html", "streams",
    }  # fmt: skip
    assert results["format"] == 1
    assert [found["name"] for found in results["models"]] == ["w0.85", "w3.5"]
    assert set(results["peers"]) == {"jpeg", "webp"}
    assert results["verdict"]


def test_the_curves_are_drawn_again_from_the_numbers(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = done
    draw([str(out / "results.json"), str(tmp_path / "again.png")])
    assert (tmp_path / "again.png").read_bytes() == (out / "rd-curve.png").read_bytes()


def test_the_rate_is_the_size_of_the_files(done: tuple[Path, dict[str, Any]]) -> None:
    out, results = done
    sizes = {picture["name"]: picture for picture in results["pictures"]}
    for tested in results["models"]:
        for found in tested["pictures"]:
            stream = out / "streams" / tested["name"] / f"{found['name']}.cca"
            size = sizes[found["name"]]
            assert found["bytes"] == stream.stat().st_size
            assert found["bpp"] == 8 * found["bytes"] / (size["width"] * size["height"])
        mean = sum(found["bpp"] for found in tested["pictures"]) / len(tested["pictures"])
        assert tested["bpp"] == pytest.approx(mean)
    assert not list(out.rglob(".warm-up"))


def test_the_quality_is_that_of_the_decoded_files(
    done: tuple[Path, dict[str, Any]], data: Path, model_files: list[Path]
) -> None:
    out, results = done
    codec = load_model(model_files[0])
    for found in results["models"][0]["pictures"]:
        stream = (out / "streams" / "w0.85" / f"{found['name']}.cca").read_bytes()
        with torch.inference_mode():
            decoded = to_picture(codec.decompress(stream))
        assert psnr(read_picture(data / f"{found['name']}.png"), decoded) == found["psnr"]


def test_a_picture_too_small_for_ms_ssim_leaves_its_mean_undefined(
    done: tuple[Path, dict[str, Any]],
) -> None:
    first = done[1]["models"][0]
    assert [found["ms_ssim"] is None for found in first["pictures"]] == [False, True, False]
    assert first["ms_ssim"] is None
    assert first["psnr"] > 0
    assert first["peak_memory_bytes"] > 2**20


def test_the_table_has_a_row_for_every_measurement(done: tuple[Path, dict[str, Any]]) -> None:
    out, results = done
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    settings = 2 + sum(len(peer["points"]) for peer in results["peers"].values())
    assert len(rows) == settings * 3
    assert float(rows[0]["psnr"]) == results["models"][0]["pictures"][0]["psnr"]


def test_the_page_needs_nothing_from_elsewhere(done: tuple[Path, dict[str, Any]]) -> None:
    page = (done[0] / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    for words in ("JPEG", "WebP", "kodim23", "The worst picture", "Where the bits go", "w0.85"):
        assert words in page


@pytest.mark.slow
def test_the_command_gives_json_and_replaces_its_own_folder(
    done: tuple[Path, dict[str, Any]],
    data: Path,
    model_files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["evaluate", str(model_files[0]), "--data", str(data), "--out", str(tmp_path / "r")]
    words += ["--peers", "jpeg", "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    left = tmp_path / f".other.{'0' * 6}-1-00000000.partial"  # by an evaluation killed long ago
    left.mkdir()
    os.utime(left, (0, 0))
    for extra in ([], ["--json"]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*words, *extra])
        assert not ended.value.code
    summary = json.loads(capsys.readouterr().out)
    assert summary["models"][0]["bpp"] == done[1]["models"][0]["bpp"]
    assert "pictures" not in summary["models"][0]
    assert Path(summary["report"]).is_file()
    assert not left.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--data": "{tmp}/missing"}, "is no folder of pictures"),
        ({"--data": "{tmp}/empty"}, "holds no pictures"),
        ({"--data": "{tmp}/bad"}, "is not a picture"),
        ({"--out": "{tmp}/bad"}, "holds other things"),
        ({"--peers": "gif"}, "no codec is called 'gif'"),
        ({"--device": "abacus"}, "no device 'abacus'"),
        ({"model": "{tmp}/empty"}, "there is no model in"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    change: dict[str, str],
    sentence: str,
    data: Path,
    model_files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.png").write_bytes(b"no picture")
    options = {"model": str(model_files[0]), "--data": str(data), "--out": str(tmp_path / "out")}
    options |= {key: value.format(tmp=tmp_path) for key, value in change.items()}
    name = options.pop("model")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", name, *(word for pair in options.items() for word in pair)])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert sentence in lines[-1]
    assert lines[-1].startswith("pipeline: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "empty"]


def test_two_models_of_one_name_are_refused(
    data: Path, model_files: list[Path], tmp_path: Path
) -> None:
    specs = [ModelSpec("same", path) for path in model_files]
    with pytest.raises(EvaluationError, match="two models are called same"):
        evaluate(specs, sorted(data.iterdir()), tmp_path / "out", [])
    with pytest.raises(EvaluationError, match="no model"):
        evaluate([], sorted(data.iterdir()), tmp_path / "out", [])
    with pytest.raises(EvaluationError, match="no pictures"):
        evaluate(specs, [], tmp_path / "out", [])


def test_a_metric_loads_neither_plots_nor_scipy() -> None:
    code = (
        "import sys; from pipeline.evaluation.learned import to_picture; "
        "from pipeline.evaluation import psnr; "
        "print(*({'matplotlib', 'jinja2', 'scipy', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_curves_are_of_one_training() -> None:
    def named(name: str, weight: float = 1.0, **info: object) -> ModelResult:
        made = model(name, curve_name(ModelInfo.of(info), "CCA"), (0.5, 30))
        return replace(made, info=info, rate_weight=weight)

    base: dict[str, Any] = {
        "recipe": "demo",
        "stage": "base",
        "distortion": "mse",
        "git_commit": "old",
    }
    tuned = base | {"stage": "mse", "recipe_digest": "a"}
    resumed = tuned | {"git_commit": "new"}
    one = [named("w1", 1.0, **tuned), named("w2", 2.0, **resumed), named("base", **base)]
    curves = [found.curve for found in tell_curves_apart([*one, named("imported")])]
    assert curves == ["demo, MSE", "demo, MSE", "demo, base, MSE", "CCA"]

    # The same recipe on other pictures, and again with other code: curves of their own.
    other = named("other", 1.0, **tuned | {"data_digest": "b"})
    assert [found.curve for found in tell_curves_apart([*one[:2], other])] == [
        "demo, MSE · w1", "demo, MSE · w1", "demo, MSE · other",
    ]  # fmt: skip
    again = [named("w1 again", 1.0, **resumed), named("w2 again", 2.0, **resumed)]
    old = [named("w1", 1.0, **tuned), named("w2", 2.0, **tuned)]
    assert [found.curve for found in tell_curves_apart([*old, *again])] == [
        "demo, MSE · w1", "demo, MSE · w1", "demo, MSE · w1 again", "demo, MSE · w1 again",
    ]  # fmt: skip
