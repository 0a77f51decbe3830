"""Codecs become versions that resolve to the same codec again, on this machine or another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import pipeline
from pipeline.codec import CCAModel, load_model
from pipeline.tracking import (
    Tracker,
    TrackingError,
    list_versions,
    measurements,
    register_model,
    resolve_model,
)

Checkpoint = Callable[..., Path]


def test_a_version_has_the_checkpoints_info_and_resolves_to_the_same_codec(
    workdir: Path, checkpoint: Checkpoint, codec: CCAModel
) -> None:
    info = {"stage": "mse", "rate_weight": 0.85, "distortion": "mse", "step": 200}
    metrics: dict[str, float | str] = {
        "bpp": 0.5,
        "psnr": 30.0,
        "bd_rate.jpeg.psnr": -3.5,
        "measured_on": "2 pictures",
    }
    folder = checkpoint(**info, recipe_digest="abc")
    version = register_model(str(folder), "cca", "champion", metrics)
    assert (version.name, version.version, version.aliases) == ("cca", 1, ("champion",))
    assert (version.stage, version.rate_weight, version.step) == ("mse", 0.85, 200)
    assert (version.bpp, version.psnr, version.bd_rate) == (0.5, 30.0, {"jpeg.psnr": -3.5})
    assert version.tags["recipe_digest"] == "abc"
    assert list_versions("cca") == list_versions() == [version]

    assert pipeline.load_model(folder).fingerprint == codec.fingerprint  # a Path
    shutil.rmtree(folder)
    for name in ("models:/cca/1", "models:/cca@champion"):
        again = load_model(resolve_model(name))
        assert again.fingerprint == codec.fingerprint == version.fingerprint
        assert again.info.rate_weight == 0.85


def test_a_run_can_be_registered_by_its_id(workdir: Path, checkpoint: Checkpoint) -> None:
    tracker = Tracker.start("tests", "r", params={}, tags={})
    folder = checkpoint(run_id=tracker.run_id, step=10)
    tracker.log_file(folder / "model.safetensors", "model")
    tracker.finish()
    by_id = register_model(tracker.run_id, "cca")
    assert by_id.run_id == tracker.run_id
    by_uri = register_model(f"runs:/{tracker.run_id}", "cca", "latest-one")
    assert by_uri.version == by_id.version == 1  # the same weights are no second version
    assert by_uri.aliases == ("latest-one",)


def test_the_registered_file_holds_no_pickle(workdir: Path, checkpoint: Checkpoint) -> None:
    register_model(str(checkpoint()), "cca")
    folder = resolve_model("models:/cca/1").parents[1]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        ".safetensors", ".py", ".yaml", ".txt", "",
    }  # fmt: skip
    assert (folder / "MLmodel").is_file()


def test_measurements_come_from_an_evaluation(
    workdir: Path, checkpoint: Checkpoint, codec: CCAModel
) -> None:
    model = {"name": "m", "fingerprint": codec.fingerprint, "curve": "c", "bpp": 0.4, "psnr": 29.0}
    bd = {"c": {"jpeg": {"psnr": {"value": -12.5}}, "webp": {"psnr": {"value": None}}}}
    results = workdir / "results.json"
    results.write_text(
        json.dumps({"models": [model], "pictures": [{}, {}], "bd_rate": bd, "peers": {}})
    )
    found = measurements(results, str(checkpoint()))
    assert found["bpp"] == 0.4
    assert found["bd_rate.jpeg.psnr"] == -12.5
    assert "bd_rate.webp.psnr" not in found


def test_measurements_of_another_codec_are_refused(workdir: Path, checkpoint: Checkpoint) -> None:
    results = workdir / "results.json"
    results.write_text(json.dumps({"models": [{"name": "other", "fingerprint": "0"}]}))
    with pytest.raises(TrackingError, match="only of other: evaluate it first"):
        measurements(results, str(checkpoint()))
    results.write_text("{")
    with pytest.raises(TrackingError, match=r"not a results\.json"):
        measurements(results, str(checkpoint()))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("models:/cca/7", "cca has the versions 1 and the aliases champion"),
        ("models:/cca@challenger", "cca has the versions 1 and the aliases champion"),
        ("models:/none/1", "it has the models cca"),
        ("models:/cca", "is not the name of a model"),
        ("runs:/" + "0" * 32, "not found"),
        ("nowhere.safetensors", "there is no model nowhere.safetensors: give a file or folder"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(
    workdir: Path, checkpoint: Checkpoint, model: str, says: str
) -> None:
    register_model(str(checkpoint()), "cca", "champion")
    with pytest.raises(TrackingError, match=says):
        resolve_model(model)


def test_an_unfit_name_is_refused_before_anything_is_written(
    workdir: Path, checkpoint: Checkpoint
) -> None:
    with pytest.raises(TrackingError, match="can't be a model's name"):
        register_model(str(checkpoint()), "a/b")
    assert list_versions() == []


def test_a_request_that_was_made_twice_leaves_one_version(
    workdir: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = MlflowClient.create_model_version

    def repeated(*given: Any, **named: Any) -> Any:
        create(*given, **named)  # done, and its answer lost
        return create(*given, **named)

    monkeypatch.setattr(MlflowClient, "create_model_version", repeated)
    assert register_model(str(checkpoint()), "cca", "champion").version == 1
    assert [version.uri for version in list_versions("cca")] == ["models:/cca/1"]
    assert list_versions("cca")[0].aliases == ("champion",)
