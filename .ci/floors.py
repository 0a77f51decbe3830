"""Print the lowest version that pyproject.toml admits of each direct dependency, as constraints.

    python .ci/floors.py [--except NAME] > floors.txt
    PIP_CONSTRAINT=floors.txt pip install -e '.[dev]'

Run it with an interpreter that has `packaging`, for its markers decide what applies here.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def requirements() -> Iterator[Requirement]:
    """Yield every requirement of the project and its extras that applies to this machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for text in (*project["dependencies"], *(text for extra in extras for text in extra)):
        one = Requirement(text)
        if one.name != project["name"] and (one.marker is None or one.marker.evaluate()):
            yield one


def floors() -> dict[str, str]:
    """Return the floor of each requirement that states one, by its canonical name."""
    found = {}
    for one in requirements():
        for part in one.specifier:
            if part.operator in (">=", "=="):
                found[canonicalize_name(one.name)] = part.version
    return found


def main() -> None:
    """Print a line for each floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--except", dest="left_out", action="append", default=[], metavar="NAME")
    left_out = {canonicalize_name(name) for name in parser.parse_args().left_out}
    for name, version in sorted(floors().items()):
        if name not in left_out:
            sys.stdout.write(f"{name}=={version}\n")


if __name__ == "__main__":
    main()
