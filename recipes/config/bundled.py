"""Find what comes with the project (recipes, launch files, profiles, pictures) from any folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2]
# Where the files lie, in a checkout as in an installed wheel.
FOLDERS = ("recipes", "orchestration/profiles", "shards/augment")
ENDINGS = (".yaml", ".json")
COMMAND = re.compile(r"accelerate launch .*train\.py|^pipeline ")

P = TypeVar("P", str, Path)


def shipped(path: P) -> P:
    """Return `path`, or what comes with the project under that name if nothing is at `path`.

    `recipes/demo.yaml` is the working folder's own file where it has one, and the installed one
    elsewhere. Any other path is returned as it is, whether it is there or not.
    """
    given = Path(path)
    inside = any(given.is_relative_to(folder) for folder in FOLDERS) and ".." not in given.parts
    if not inside or given.exists() or not (ROOT / given).exists():
        return path
    return type(path)(ROOT / given)


def listed() -> Iterator[tuple[str, Path]]:
    """Yield the name and the place of each file that comes with the project, sorted by name."""
    found = [
        path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in ENDINGS
    ]
    for path in sorted(found):
        yield path.relative_to(ROOT).as_posix(), path


def purpose(path: Path) -> str:
    """Return how the comment at the top of a file begins, after the command that it shows."""
    if path.suffix == ".json":
        return "DeepSpeed's settings for the launch file of the same name"
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    text = " ".join(line for line in lines if not COMMAND.search(line)).strip()
    return re.split(r"[.:;] | \(", text)[0].rstrip(".")
