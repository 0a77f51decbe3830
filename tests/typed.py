"""What a user types, run in this process: a start of Python takes longer than most commands."""

from __future__ import annotations

from dataclasses import dataclass

from typer.testing import CliRunner

from pipeline.cli.main import build


@dataclass(frozen=True)
class Done:
    """What a command has left, by the names of `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def typed(*words: object) -> Done:
    """Run `pipeline WORDS`."""
    result = CliRunner().invoke(build(), [str(word) for word in words])
    return Done(result.exit_code, result.stdout, result.stderr)
