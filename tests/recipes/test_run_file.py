"""`run.json` is read as it was written, or refused by one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.config.load import load_recipe
from recipes.config.run_file import read_run_file
from recipes.config.settings import RecipeError
from recipes.training.results import read_run
from recipes.training.resume import check_steps_left, find_origins

WRITTEN = {"done": True, "step": 6, "steps": 6, "run_id": "a1", "parent_fingerprint": None}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@pytest.fixture
def recipe(write_recipe) -> Path:
    """A recipe of one run of six steps, which may be read again and again."""
    path: Path = write_recipe()
    return path


@given(key=st.sampled_from([*WRITTEN, "failed", "of_a_later_version"]), value=ANYTHING)
def test_whatever_a_run_says_of_itself_is_understood_or_refused(key: str, value: object) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "run.json").write_text(json.dumps({**WRITTEN, key: value}))
        said = read_run(Path(folder))
        if not said:
            with pytest.raises(RecipeError, match=rf"run\.json is damaged: {key} is "):
                read_run_file(Path(folder))
            return
        assert said == read_run_file(Path(folder))
        assert isinstance(said["step"], int)
        assert isinstance(said["done"], bool)
        assert "failed" not in said or isinstance(said["failed"]["step"], int)


@pytest.mark.parametrize("text", ["", "[]", "null", "7", '{"done"', "[" * 100_000, "\ud800"])
def test_what_is_no_object_is_damaged(recipe: Path, text: str) -> None:
    (run,) = load_recipe(recipe).runs()
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(RecipeError, match=r"run\.json is damaged: .*Remove it to go on"):
        find_origins([run], None, False)


def test_a_run_whose_model_was_removed_is_not_complete(recipe: Path) -> None:
    (run,) = load_recipe(recipe).runs()
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(json.dumps(WRITTEN))
    assert not run.complete
    with pytest.raises(RecipeError, match="was trained to step 6, and has no checkpoint"):
        check_steps_left(run)
    (run.folder / "model.safetensors").touch()
    assert run.complete
