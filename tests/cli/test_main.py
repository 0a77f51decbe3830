"""The command as a whole: its help, its exit codes, its speed of answering."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pipeline.cli.main import build, grouped, main
from tests.patience import patience

PIPELINE = Path(sys.executable).parent / "pipeline"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PIPELINE, *words], capture_output=True, text=True, timeout=patience(300))


def commands() -> list[str]:
    group: Any = typer.main.get_command(build())
    return sorted(group.commands)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.cli.main import build; import typer.main;"
        "typer.main.get_command(build());"
        "print([m for m in ('torch', 'mlflow', 'datasets', 'kornia', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_package_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "pipeline", "shard", "nowhere"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=patience(300))
    assert done.returncode == 2
    assert "Usage: pipeline" in done.stderr


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert not end.value.code
    told = capsys.readouterr().out
    assert "Example:" in told
    assert f"pipeline {command}" in told


def test_help_lists_every_command_once_with_its_whole_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    group: Any = typer.main.get_command(build())
    with pytest.raises(SystemExit):
        main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for title, names in grouped(group.commands).items():
        section = told.split(f" {title}: ")[1]
        for name in names:
            sentence = " ".join(group.commands[name].help.split("\n\n")[0].split()).rstrip(".")
            assert f"{name} {sentence}" in section
            assert told.count(f" {name} {sentence}") == 1


def test_a_command_without_a_group_is_listed_too() -> None:
    assert grouped(["train", "new"]) == {"Training": ["train"], "Other": ["new"]}


def test_unknown_command_is_bad_usage() -> None:
    done = run("shrad")
    assert done.returncode == 2
    assert "shrad" in done.stderr
    assert "Traceback" not in done.stderr
