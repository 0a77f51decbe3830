"""Tells whether a job's outputs were made from its present inputs.

A job that has succeeded leaves a stamp: its command, and the digests of its inputs. Its work counts
as done while command and digests stay the same, whatever the files' times are. Scripts of jobs use
it as a command, where it needs no library:

    python -m orchestration.stamps check STAMP --command=TEXT --input=PATH ... --output=PATH ...
    python -m orchestration.stamps take STAMP --command=TEXT --input=PATH ... --output=PATH ...

`take` writes STAMP.part before the work begins, and the script renames it when the work is done.
A stamp also holds sizes and times: a file that has kept both is not read again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.atomic import write_json
from pipeline.common.digests import file_sha256
from pipeline.common.documents import parse
from recipes.config.bundled import shipped

FORMAT = 1
# Larger files, and folders of more files, are known by their sizes and times alone.
MOST_BYTES = 4 << 30
MOST_FILES = 20_000
Known = Mapping[str, Any]


def fresh(
    stamp: Path, command: str, inputs: Sequence[str], outputs: Sequence[str], place: Path
) -> bool:
    """Return whether `outputs` are there and `stamp` says that these inputs made them.

    Paths are relative to the folder `place`.
    """
    if not all((place / output).exists() for output in outputs):
        return False
    try:
        known = parse((place / stamp).read_bytes())
        if known["format"] != FORMAT or known["command"] != command:
            return False
        before = known["inputs"]
        return list(before) == list(inputs) and all(
            _same(before[path], described(path, place, before[path])) for path in inputs
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def taken(command: str, inputs: Sequence[str], place: Path) -> dict[str, Any]:
    """Return the stamp of `command` with `inputs` as they are now."""
    return {
        "format": FORMAT,
        "command": command,
        "inputs": {path: described(path, place) for path in inputs},
    }


def described(path: str, place: Path, before: Known | None = None) -> dict[str, Any]:
    """Describe the input at `path` as it is now: a file, a folder, or a name that is no path.

    Args:
        path: as the command has it, relative to `place`.
        place: the working folder.
        before: an earlier description; digests of what has kept size and time come from there.
    """
    if "://" in path or path.startswith(("hf:", "shards:")):
        return {"kind": "elsewhere"}
    found = Path(shipped(place / path if (place / path).exists() else Path(path)))
    if not found.exists():
        return {"kind": "missing"}
    if found.is_file():
        return {"kind": "file", **_file(found, before or {})}
    return _folder(found, before or {})


def _folder(folder: Path, before: Known) -> dict[str, Any]:
    """Describe each file below; where they are very many, only the folders and their times."""
    listed: list[Path] = []
    for root, below, names in os.walk(folder):
        below.sort()
        listed += [Path(root, name) for name in sorted(names)]
        if len(listed) > MOST_FILES:
            return {"kind": "large folder", "folders": _tops(folder)}
    known = before.get("files", {})
    files = {}
    for path in listed:
        name = path.relative_to(folder).as_posix()
        files[name] = _file(path, known.get(name, {}))
    return {"kind": "folder", "files": files}


def _tops(folder: Path) -> dict[str, int]:
    """Return the times of a folder and of the folders directly in it."""
    with os.scandir(folder) as entries:
        below = {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.is_dir()}
    return {".": folder.stat().st_mtime_ns, **dict(sorted(below.items()))}


def _file(path: Path, before: Known) -> dict[str, Any]:
    try:
        about = path.stat()
    except OSError:
        # A link to nothing.
        return {"size": 0, "time": 0, "sha256": ""}
    size, time = about.st_size, about.st_mtime_ns
    if before.get("size") == size and before.get("time") == time:
        return {"size": size, "time": time, "sha256": before.get("sha256", "")}
    if size > MOST_BYTES:
        return {"size": size, "time": time, "sha256": ""}
    return {"size": size, "time": time, "sha256": file_sha256(path)}


def _same(one: Known, other: Known) -> bool:
    """Return whether two descriptions are of the same content."""
    if one["kind"] != other["kind"]:
        return False
    if one["kind"] == "file":
        return _same_file(one, other)
    if one["kind"] == "folder":
        return one["files"].keys() == other["files"].keys() and all(
            _same_file(file, other["files"][name]) for name, file in one["files"].items()
        )
    return one == other


def _same_file(one: Known, other: Known) -> bool:
    if one["sha256"] and other["sha256"]:
        return bool(one["sha256"] == other["sha256"])
    return bool(one == other)


def main(arguments: Sequence[str]) -> int:
    """Run the command of the module's description; return its exit code."""
    parser = argparse.ArgumentParser(prog="orchestration.stamps", description=__doc__)
    parser.add_argument("action", choices=("check", "take"))
    parser.add_argument("stamp", type=Path)
    parser.add_argument("--command", required=True)
    parser.add_argument("--input", action="append", default=[])
    parser.add_argument("--output", action="append", default=[])
    asked = parser.parse_args(arguments)
    here = Path.cwd()
    if asked.action == "check":
        return 0 if fresh(asked.stamp, asked.command, asked.input, asked.output, here) else 1
    write_json(Path(f"{asked.stamp}.part"), taken(asked.command, asked.input, here))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
