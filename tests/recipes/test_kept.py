"""What earlier versions left goes on: a run folder with its checkpoint, and its recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from recipes.config.load import load_recipe
from recipes.train import main
from recipes.training.checkpoint import found
from recipes.training.data import Corpora
from recipes.training.results import read_run
from recipes.training.resume import differences

KEPT = sorted((Path(__file__).parent / "kept").iterdir())


@pytest.mark.parametrize("kept", KEPT, ids=[path.name for path in KEPT])
def test_a_run_of_an_earlier_version_goes_on(
    kept: Path, photo_shards: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "kept"
    shutil.copytree(kept, copy)
    given = [f"data.train={photo_shards}", f"out={copy / 'runs'}", "stages.0.steps=3"]
    run = load_recipe(copy / "trial.yaml", given).runs()[0]
    (checkpoint,) = found(run.folder)
    assert differences(run, checkpoint.about) == {}
    # The shards are made anew here, so they have this version's digest.
    path = checkpoint.folder / "checkpoint.json"
    digest = Corpora.of(run.data).digest
    path.write_text(json.dumps({**checkpoint.about, "data_digest": digest}))
    assert main([str(copy / "trial.yaml"), *given]) == 0
    assert read_run(run.folder)["step"] == 3
    # What the run itself resolved is a recipe as well.
    assert load_recipe(kept / "runs" / "base" / "recipe.yaml").runs()[0].id == "base"


def test_a_recipe_of_a_later_version_is_one_sentence(write_recipe, caplog) -> None:
    path = write_recipe(invention={"of": "tomorrow"})
    assert main([str(path)]) == 2
    assert "unknown key invention" in caplog.text
