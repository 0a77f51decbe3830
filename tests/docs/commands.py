"""Reads the commands that a page of the documentation shows, and runs them as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.patience import patience

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```console\n(?P<text>.*?)```", re.DOTALL
)
# A command in an indented block or in the comment at the top of a YAML file.
MENTIONED = re.compile(
    r"(    |# )(\w+=\S+ )*"
    r"(pipeline [a-z]|accelerate launch |make [a-z]|python -m |pytest -|mlflow [a-z])"
)
TRAINING = ("accelerate launch", "pipeline train")
# What makes a recipe of days one of seconds, without touching what the command is about.
SHORTER = ("model=tiny", "data.workers=0")


@dataclass(frozen=True)
class Command:
    """A command of a page; `reason` says why it is not run here, empty when it is."""

    words: tuple[str, ...]
    reason: str


def commands(page: Path) -> list[Command]:
    """Return the `$ ` lines of the page's console blocks, in order, without their comments."""
    found = []
    for block in BLOCK.finditer(page.read_text()):
        text = block["text"].replace("\\\n", " ")
        for line in text.splitlines():
            if line.startswith("$ "):
                found.append(
                    Command(tuple(shlex.split(line[2:], comments=True)), block["reason"] or "")
                )
    return found


def mentioned(page: Path) -> list[tuple[str, ...]]:
    """Return every command that a page or a YAML file shows: in console blocks, indented, noted."""
    found = [command.words for command in commands(page)]
    for line in page.read_text().replace("\\\n", " ").splitlines():
        if MENTIONED.match(line):
            found.append(tuple(shlex.split(line.strip("# \n"), comments=True)))
    return found


def shorten(words: tuple[str, ...], overrides: tuple[str, ...]) -> list[str]:
    """Return the command made short enough for a test: tiny models, few steps, `make -n`."""
    line = " ".join(words)
    if words[0] == "make":
        return ["make", "-n", *words[1:]]
    if line.startswith(TRAINING):
        return [*words, *SHORTER, *overrides]
    return list(words)


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` with this environment's programs first on the path."""
    programs = str(Path(sys.executable).parent)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")},
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=patience(500)
    )
