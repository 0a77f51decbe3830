"""The drawings of docs/architecture.md are what the files import."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = (
    *("pipeline/cli", "pipeline/codec", "pipeline/evaluation", "pipeline/tracking"),
    *("shards", "recipes", "orchestration"),
)
NODE = re.compile(r'(\w+)\["([^"<]+)[^"]*"\]')
NAMED = re.compile(r"`((?:pipeline|shards|recipes|orchestration)/[\w/]+\.py)`")


GROUND = "pipeline/common"


def drawing(text: str, number: int) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Return a Mermaid flowchart's nodes, by name, and its solid arrows between them."""
    chart = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)[number]
    nodes = dict(NODE.findall(chart))
    arrows = set()
    for line in NODE.sub(r"\1", chart).splitlines():
        steps = re.split(r"\s*(-->|-\..*?\.->)\s*", line.strip())
        for before, arrow, after in zip(steps[::2], steps[1::2], steps[2::2], strict=False):
            if arrow == "-->":
                arrows |= {
                    (nodes[a], nodes[b]) for a in before.split(" & ") for b in after.split(" & ")
                }
    return nodes, arrows


def imports(path: Path) -> set[Path]:
    """Return our files that a file imports, wherever in it, and those that these packages offer."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            place = ROOT.joinpath(*name.split("."))
            file = place.with_suffix(".py")
            found |= {one for one in (file, place / "__init__.py") if one.is_file()}
    return found


def room(path: Path) -> str | None:
    name = path.relative_to(ROOT).as_posix()
    return next((one for one in ROOMS if name.startswith(f"{one}/")), None)


def test_the_rooms_are_drawn_as_they_import() -> None:
    _, drawn = drawing(PAGE, 0)
    real = set()
    for name in ROOMS:
        for path in (ROOT / name).rglob("*.py"):
            real |= {(name, room(other)) for other in imports(path)} - {(name, None), (name, name)}
    assert drawn == real


def test_the_readme_draws_the_same_rooms() -> None:
    _, drawn = drawing(PAGE, 0)
    nodes, shown = drawing((ROOT / "README.md").read_text(), 0)
    # There, orchestration's arrow is dotted: it takes a recipe's schema alone.
    tidy = {(a.rstrip("/"), b.rstrip("/")) for a, b in shown}
    assert tidy | {("orchestration", "recipes")} == drawn
    assert {name.rstrip("/") for name in nodes.values()} == set(ROOMS)


def test_the_way_of_a_picture_is_made_of_imports() -> None:
    nodes, arrows = drawing(PAGE, 1)
    assert len(arrows) > 20
    for name in nodes.values():
        assert not name.endswith(".py") or (ROOT / name).is_file(), name
    for caller, called in arrows:
        direct = imports(ROOT / caller)
        offered = {one for other in direct if other.name == "__init__.py" for one in imports(other)}
        assert ROOT / called in direct | offered, f"{caller} does not import {called}"


def test_the_number_keeps_its_name() -> None:
    way = PAGE.split("## The way of a number")[1].split("\n## ")[0]
    files = NAMED.findall(way)
    assert len(files) > 5
    for name in files:
        assert "rate_weight" in (ROOT / name).read_text(), name


def test_the_ground_floor_imports_nothing_of_ours() -> None:
    for path in (ROOT / GROUND).rglob("*.py"):
        own = {other for other in imports(path) if other != ROOT / "pipeline" / "__init__.py"}
        assert all(other.is_relative_to(ROOT / GROUND) for other in own), path


def test_no_circle_of_imports_joins_any_files() -> None:
    graph = grimp.build_graph(
        "pipeline", "shards", "recipes", "orchestration", exclude_type_checking_imports=True
    )
    needs = {file: graph.find_modules_directly_imported_by(file) for file in graph.modules}
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the files


@pytest.mark.slow
def test_the_import_contract_is_kept() -> None:
    program = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
