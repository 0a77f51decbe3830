"""The champion changes only for a curve that is better beyond the noise of the pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.codec import CCAConfig, CCAModel, save_model
from pipeline.evaluation.bootstrap import PictureCurve, bd_rate_interval
from pipeline.tracking import Tracker, TrackingError, list_versions, register_model
from pipeline.tracking.promotion import Decision, Gain, contenders, enact, judge
from pipeline.tracking.registry import Version, find
from pipeline.tracking.store import client
from tests.tracking.test_command import pipeline


def version(number: int) -> Version:
    empty: dict[str, Any] = dict.fromkeys(
        ("run_id", "stage", "rate_weight", "distortion", "step", "bpp", "psnr", "ms_ssim"), None
    )
    return Version("cca", number, (), "", measured_on=None, **empty)


def curve(pictures: int, scale: float, noise: float, seed: int) -> PictureCurve:
    """Four rates on pictures of unequal difficulty; `scale` times the bits, unevenly."""
    generator = np.random.default_rng(seed)
    difficulty = np.random.default_rng(0).lognormal(0, 0.4, pictures)
    uneven = generator.lognormal(0, noise, pictures)
    rates = np.array([0.2, 0.4, 0.8, 1.6])[:, None] * difficulty * scale * uneven
    qualities = np.array([28.0, 31.0, 34.0, 37.0])[:, None] + np.zeros(pictures)
    return PictureCurve(rates, qualities)


def challenge(scale: float, noise: float, pictures: int = 24) -> Decision:
    found = bd_rate_interval(curve(pictures, 1.0, 0.0, 1), curve(pictures, scale, noise, 2))
    gain = Gain(found.value, found.low, found.high, "BD-rate")
    return judge("cca", version(1), version(2), gain, pictures)


def test_a_clearly_better_curve_wins() -> None:
    decision = challenge(0.9, 0.05)
    assert decision.better
    assert decision.gain is not None
    assert decision.gain.value == pytest.approx(-10, abs=3)
    assert "fewer bits than models:/cca/1 over 24 pictures (BD-rate" in decision.why
    assert decision.why.endswith("better beyond the noise")


def test_a_small_gain_within_the_noise_does_not() -> None:
    decision = challenge(0.99, 0.3, pictures=8)
    assert not decision.better
    assert "within the noise" in decision.why


def test_a_worse_curve_does_not() -> None:
    decision = challenge(1.2, 0.02)
    assert not decision.better
    assert "worse beyond the noise" in decision.why


def test_what_can_not_be_compared_does_not() -> None:
    decision = judge("cca", version(1), version(2), "the curves share no range of quality", 3)
    assert not decision.better
    assert decision.why.endswith("on these 3 pictures: the curves share no range of quality")


@pytest.fixture
def register(workdir: Path, tmp_path: Path) -> Callable[..., Version]:
    """Register a random codec of its own as a version with this info."""
    import torch

    made = iter(range(100))

    def make(alias: str | None = None, **info: object) -> Version:
        number = next(made)
        with torch.random.fork_rng():
            torch.manual_seed(number)
            codec = CCAModel(CCAConfig.tiny())
        folder = tmp_path / f"codec-{number}"
        save_model(codec, folder / "model.safetensors", {"distortion": "mse", **info})
        return register_model(str(folder), "cca", alias)

    return make


def test_contenders_are_the_newest_versions_of_each_training(
    register: Callable[..., Version],
) -> None:
    for rate in (0.85, 3.5):
        register(recipe_digest="old", rate_weight=rate)
    champion = register("champion", recipe_digest="old", rate_weight=0.85)
    register(recipe_digest="new", rate_weight=3.5)
    challenger = register("challenger", recipe_digest="new", rate_weight=0.85)
    old, new = contenders("cca")
    assert [v.version for v in old] == [champion.version, 2]
    assert [v.version for v in new] == [challenger.version, 4]


@pytest.mark.slow
def test_the_same_recipe_trained_again_is_another_training(
    register: Callable[..., Version],
) -> None:
    versions: list[Version] = []
    for _ in range(2):
        base = Tracker.start("tests", "base", params={}, tags={})
        base.finish()
        for rate in (0.85, 3.5):
            run = Tracker.start("tests", "mse", params={}, tags={}, parent_run_id=base.run_id)
            run.finish()
            info = {"recipe_digest": "same", "stage": "mse", "git_commit": f"c{len(versions)}"}
            versions.append(register(run_id=run.run_id, rate_weight=rate, **info))
    assert versions[0].tags["training"] == versions[1].tags["training"]
    client().set_registered_model_alias("cca", "champion", "1")
    client().set_registered_model_alias("cca", "challenger", "3")
    old, new = contenders("cca")
    assert [v.version for v in old] == [1, 2]
    assert [v.version for v in new] == [3, 4]


def test_no_challenger_is_told(register: Callable[..., Version]) -> None:
    register("champion", recipe_digest="a")
    with pytest.raises(TrackingError, match="cca has no challenger: pipeline register"):
        contenders("cca")


def test_a_decision_moves_the_alias_and_is_kept(register: Callable[..., Version]) -> None:
    first = register("champion", recipe_digest="a")
    second = register("challenger", recipe_digest="b")
    enact(Decision("cca", first.uri, second.uri, False, "within the noise"), {})
    assert find(list_versions("cca"), "champion") == first
    enact(Decision("cca", first.uri, second.uri, True, "better"), {second.uri: {"bpp": 0.5}})
    found = find(list_versions("cca"), "champion")
    assert found is not None
    assert found.uri == second.uri
    assert found.tags["promotion"] == "better"
    assert found.bpp == 0.5


@pytest.mark.slow
def test_promote_as_a_user_types_it(
    register: Callable[..., Version], pictures: Path, tmp_path: Path
) -> None:
    from PIL import Image

    data = tmp_path / "pictures"
    data.mkdir()
    for path in sorted((pictures / "kodak").glob("*.webp"))[:2]:
        Image.open(path).crop((0, 0, 192, 192)).save(data / f"{path.stem}.png")
    register("challenger", recipe_digest="a", rate_weight=0.85)
    code, said = pipeline("promote", "cca", "--data", str(data))
    assert code == 0
    assert "@champion moved to models:/cca/1: cca had no champion" in said
    register("challenger", recipe_digest="b", rate_weight=0.85)
    code, said = pipeline("promote", "cca", "--data", str(data), "--json")
    assert code == 0, said
    decision = json.loads(said[said.index("{") :])
    assert decision["pictures"] == 2
    assert all(found.psnr is not None for found in list_versions("cca"))
    assert champion() == ("models:/cca/2" if decision["moved"] else "models:/cca/1")
    # Whoever won keeps the place against the other: the two can't both be better.
    winner, loser = (2, 1) if decision["moved"] else (1, 2)
    client().set_registered_model_alias("cca", "challenger", str(loser))
    code, said = pipeline("promote", "cca", "--data", str(data), "--out", str(tmp_path / "kept"))
    assert code == 0, said
    assert f"@champion stays, not moved to models:/cca/{loser}" in said
    assert champion() == f"models:/cca/{winner}"
    assert (tmp_path / "kept" / "report.html").is_file()
    assert pipeline("promote", "nothing", "--data", str(data))[0] == 2


def champion() -> str:
    found = find(list_versions("cca"), "champion")
    assert found is not None
    return found.uri
