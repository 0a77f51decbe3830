"""A registered codec with several rates: its tags, its row in the table, and how it is served."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.cli.challenge import _curve
from pipeline.codec import CCAConfig, CCAModel, load_model, save_model
from pipeline.codec.bitstream import read_header
from pipeline.tracking import measurements, register_model, resolve_model
from tests.tracking.test_command import pipeline


@pytest.fixture
def ranged(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = CCAModel(replace(CCAConfig.tiny(), rate_weights=(15, 3.5, 0.3)))
    return save_model(codec, tmp_path / "ranged" / "model.safetensors", {"stage": "all"}).parent


def results_of(folder: Path, path: Path) -> Path:
    fingerprint = load_model(folder).fingerprint
    models = [
        {"fingerprint": fingerprint, "curve": "c", "bpp": bpp, "psnr": psnr, "rate": rate}
        for rate, (bpp, psnr) in enumerate([(0.125, 27.5), (0.25, 29.0), (0.75, 33.0)])
    ]
    bd = {"c": {"jpeg": {"psnr": {"value": -12.5}}}}
    path.write_text(json.dumps({"models": models, "pictures": [{}], "bd_rate": bd}))
    return path


def test_a_version_says_how_far_its_rates_reach(workdir: Path, ranged: Path) -> None:
    metrics = measurements(results_of(ranged, workdir / "results.json"), str(ranged))
    version = register_model(str(ranged), "cca", None, metrics)
    assert version.rate_weights == (15, 3.5, 0.3)
    assert (version.rate_weight, version.bpp, version.psnr) == (None, None, None)
    assert version.ranges == {"bpp": (0.125, 0.75), "psnr": (27.5, 33.0)}
    assert version.bd_rate == {"jpeg.psnr": -12.5}
    code, table = pipeline("models")
    assert code == 0
    for words in ("15 to 0.3", "0.1250 to 0.7500", "27.50 to 33.00", "-12.5"):
        assert words in table
    code, listed = pipeline("models", "--json")
    assert json.loads(listed)[0]["rate_weights"] == [15, 3.5, 0.3]


def test_promotion_compares_all_points_of_a_version(workdir: Path, ranged: Path) -> None:
    from tests.evaluation.conftest import model

    version = register_model(str(ranged), "cca")
    mine = [
        replace(model(f"models:/cca/1 rate {k}", "c", (0.2 + k, 30 + k)),
                fingerprint=version.fingerprint)
        for k in range(3)
    ]  # fmt: skip
    report = type("Report", (), {"models": [*mine, model("other", "d", (1, 1))]})
    assert _curve(report, [version], "psnr").rates.shape == (3, 3)  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_is_served_at_any_rate(
    workdir: Path, ranged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    register_model(str(ranged), "cca", "champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workdir}/mlflow.db")
    served = mlflow.pyfunc.load_model("models:/cca@champion")
    png = io.BytesIO()
    Image.effect_noise((53, 37), 60).convert("RGB").save(png, "PNG")

    def ask(data: bytes, **params: object) -> bytes:
        return bytes(served.predict(pd.DataFrame({"data": [data]}), params)["data"][0])

    for params, rate in (({}, 1.0), ({"rate": 0.25}, 0.25)):
        stream = ask(png.getvalue(), **params)
        assert read_header(stream).rate == rate
        picture = Image.open(io.BytesIO(ask(stream, operation="decompress")))
        assert picture.size == (53, 37)
    with pytest.raises(MlflowException, match="not 7"):
        ask(png.getvalue(), rate=7.0)
    # By its registered name the codec is the same one.
    assert load_model(resolve_model("models:/cca@champion")).config.rates == (0, 2)
