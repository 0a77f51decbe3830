"""`pipeline diff`: what differs between two trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.comparing import Side, compare, side
from recipes.config.settings import RecipeError
from recipes.train import main
from tests.typed import typed


def test_recipes_differ_by_what_holds_in_them(write_recipe, tmp_path: Path) -> None:
    one = write_recipe(ema=0.9)
    other = tmp_path / "other.yaml"
    # Said as it is by default anyway, and in another order.
    other.write_text(
        one.read_text()
        .replace("lr: 0.001", "lr: 0.002\n  clip: 1.0")
        .replace("name: trial", "evaluate_every: 5000\nname: trial")
    )
    done = typed("diff", one, other)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2:] == ["settings:", "  stages.base.lr: 0.001 -> 0.002"]
    alike = typed("diff", one, one)
    assert "no difference in settings" in alike.stdout


@pytest.mark.slow
def test_runs_differ_by_settings_data_and_curves(
    write_recipe, held_out: Path, tmp_path: Path
) -> None:
    path = str(write_recipe(evaluate_every=2))
    words = [path, f"data.validation={held_out}"]
    assert main([*words, "stages.0.steps=4", "out=a"]) == 0
    assert main([*words, "stages.0.steps=2", "stages.0.lr=1e-4", "out=b"]) == 0
    done = typed("diff", "a/base", "b/base", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = {(one["part"], one["key"]): (one["a"], one["b"]) for one in told["differences"]}
    assert found["settings", "lr"] == ("0.001", "0.0001")
    assert found["recipe", "out"] == ("a", "b")
    assert not [key for part, key in found if part in ("data", "machine")]
    (cost,) = (one for one in told["curves"] if one["metric"] == "val/cost")
    assert (cost["a"][0], cost["b"][0], cost["both"][0]) == (4, 2, 2)
    ids = [json.loads(Path(name, "base", "run.json").read_text())["run_id"] for name in "ab"]
    by_store = json.loads(typed("diff", *(f"runs:/{one}" for one in ids), "--json").stdout)
    assert by_store["curves"] == told["curves"]
    settings = {one["key"] for one in by_store["differences"] if one["part"] == "settings"}
    assert settings == {key for part, key in found if part == "settings"}
    # A recipe as it is now, against the run.
    now = typed("diff", path, "a/base").stdout
    assert "stages.base.steps: 6 -> 4" in now


def test_wrong_sides_are_one_sentence(write_recipe, tmp_path: Path) -> None:
    path = write_recipe()
    (tmp_path / "empty").mkdir()
    for other in ("empty", "nowhere.yaml"):
        done = typed("diff", path, other)
        assert done.returncode == 2
        assert other in done.stderr
    run = Side("runs:/1", decisive={"lr": "1"})
    with pytest.raises(ValueError, match="give its folder"):
        compare(run, Side("r.yaml", recipe={"lr": "1"}))


def test_a_folder_that_no_version_left_so_is_compared_or_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "run.json").write_text('{"id": "base"}')
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        side(str(tmp_path))
    for text in ("a: [", "- 1", "\0", ""):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(RecipeError, match=r"recipe\.yaml"):
            side(str(tmp_path))
    # A later version wrote it, and a checkpoint is damaged: what can be read is compared.
    for text in ("stages: 7", "stages: [1]", "later: {a: 1}"):
        (tmp_path / "recipe.yaml").write_text(text)
        for about in ("[]", "{", '{"run": 1, "decisive": []}'):
            (tmp_path / "checkpoints" / "step-00000001" / "checkpoint.json").write_text(about)
            assert side(str(tmp_path)).recipe
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RecipeError, match=r"run\.json is damaged"):
        side(str(tmp_path))


def test_what_one_side_does_not_know_is_no_difference() -> None:
    a = Side("a", None, {"lr": "1"}, {"data_digest": "x", "git_commit": "c"})
    b = Side("b", None, {"lr": "1"}, {"git_commit": "d"})
    found = compare(a, b)
    assert [(one.part, one.key) for one in found.differences] == [("code", "git_commit")]
    assert found.unknown == ("data",)
