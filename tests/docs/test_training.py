"""The commands of docs/training.md: each is understood, and its recipe is valid.

They train for weeks as they stand; the README's and docs/tracking.md's, of the same kinds, are run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.cli.main import build
from recipes.config.load import load_recipe
from recipes.train import choose, parse
from tests.docs.commands import commands


def test_every_command_of_the_page_is_understood(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From any folder: what comes with the project is found there too.
    monkeypatch.chdir(tmp_path)
    group: Any = typer.main.get_command(build())
    shown = [command.words for command in commands(root / "docs" / "training.md")]
    assert {words[1] for words in shown} >= {"shard", "train", "evaluate", "register", "export"}
    assert sum(words[1] == "register" for words in shown) == 6
    for words in shown:
        if words[0] == "pipeline":
            command = group.commands[words[1]]
            given = command.make_context(words[1], list(words[2:])).params
            if words[1] == "train":
                recipe = load_recipe(given["recipe"], given["overrides"] or [])
                choose(recipe.runs(), given["stage"], given["rate_weight"])
        else:
            script = words.index("recipes/train.py")
            asked = parse(words[script + 1 :])
            (config,) = [words[i + 1] for i, word in enumerate(words) if word == "--config_file"]
            assert (root / config).is_file()
            for run in load_recipe(asked.recipe, asked.overrides).runs():
                assert run.stage.batch % 64 == 0
