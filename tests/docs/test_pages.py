"""What the pages say can be typed: every command's options, every recipe's keys, every link."""

from __future__ import annotations

import difflib
import functools
import itertools
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import mentioned

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FILES = sorted([*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("orchestration/profiles/*.yaml")])
# What a page writes where its reader puts something else.
PLACEHOLDERS = {"N": "1", "I/N": "0/1", "RECIPE.yaml": "recipes/demo.yaml", "W": "1", "R": "0.5"}
ROOMS = ("pipeline/", "shards/", "recipes/", "orchestration/", "tests/", "docs/", ".ci/")
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
CODE = re.compile(r"`([^`\n]+)`")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _all() -> list[Any]:
    return [
        pytest.param(words, id=f"{_name(page)}: {' '.join(words)}")
        for page in (*PAGES, *FILES)
        for words in dict.fromkeys(mentioned(page))
    ]


@pytest.mark.parametrize("words", _all())
def test_a_command_is_understood(words: tuple[str, ...]) -> None:
    shown = itertools.takewhile(lambda word: word not in (">", "|", "&&"), words)
    plain = [word.strip("[]") for word in shown if not re.match(r"[A-Z_]+=", word)]
    plain = [PLACEHOLDERS.get(word, word) for word in plain]
    if plain[0] in PROGRAMS:
        PROGRAMS[plain[0]](plain[1:])
    else:
        # A program of others, whose options their own pages tell; ours, misspelt, is none.
        assert not difflib.get_close_matches(plain[0], PROGRAMS, cutoff=0.75)


def _pipeline(words: list[str]) -> None:
    """Parse as the command itself would, without running it."""
    group = _group()
    assert words[0] in group.commands, f"there is no pipeline {words[0]}"
    given = group.commands[words[0]].make_context(words[0], list(words[1:])).params
    if given.get("recipe") is not None:
        _recipe([str(given["recipe"]), *(given["overrides"] or [])])
    for option in ("accelerate", "augment", "on"):
        place = given.get(option)
        assert place is None or not str(place).startswith(ROOMS) or (ROOT / place).is_file()


@functools.cache
def _group() -> Any:
    import typer.main

    from pipeline.cli.main import build

    return typer.main.get_command(build())


def _accelerate(words: list[str]) -> None:
    """Parse as `accelerate launch` would, and what it runs as training would."""
    from accelerate.commands.launch import launch_command_parser

    from recipes.train import parse

    assert words[0] == "launch"
    launched = launch_command_parser().parse_args(words[1:])
    assert launched.training_script in ("recipes/train.py", "recipes.train")
    assert bool(launched.module) == (launched.training_script == "recipes.train")
    for file in (launched.config_file, launched.deepspeed_config_file):
        assert file is None or (ROOT / file).is_file()
    given = parse(launched.training_script_args)
    _recipe([given.recipe, *given.overrides])


def _recipe(words: list[str]) -> None:
    """Read a recipe of this project with its overrides; a reader's own has any name."""
    from recipes.config.load import load_recipe

    if words[0].startswith("recipes/"):
        load_recipe(words[0], words[1:])


def _python(words: list[str]) -> None:
    assert words[0] == "-m"
    assert find_spec(words[1]) is not None


def _pytest(words: list[str]) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for option, value in itertools.pairwise(words):
        if option == "-m":
            marks = re.findall(r"\w+", value.replace("not ", "").replace(" and ", " "))
            assert all(f'"{mark}: ' in text for mark in marks)
    for word in words:
        assert not word.startswith("tests") or (ROOT / word).exists()


def _make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text()
    for target in words:
        assert re.search(rf"^{re.escape(target)}:", text, re.MULTILINE)


PROGRAMS = {
    "pipeline": _pipeline,
    "accelerate": _accelerate,
    "python": _python,
    "pytest": _pytest,
    "make": _make,
}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in _anchors(target), f"{path}#{anchor}"


def _anchors(page: Path) -> set[str]:
    """Return what GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    for code in CODE.findall(page.read_text()):
        if code.startswith(ROOMS) and re.fullmatch(r"[\w./-]+", code):
            assert re.search("FILE|NAME", code) or (ROOT / code).exists(), code


def test_every_page_is_reached_from_the_readme() -> None:
    pages = {page.name for page in PAGES}
    read = {"README.md"}
    fresh = ["README.md"]
    places = {page.name: page for page in PAGES}
    while fresh:
        text = places[fresh.pop()].read_text()
        found = {Path(path).name for path, _ in LINK.findall(text)} & pages - read
        read |= found
        fresh += found
    assert pages == read
