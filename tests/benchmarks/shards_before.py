"""Compares sharding with that of an older commit: CPU time, in pairs, in one run.

    python -m tests.benchmarks.shards_before COMMIT PICTURES [--repeats 3] [--members 200000]

Each thing is done by the older code and by this code in turn, `--repeats` times, each time in a
process of its own (in another order every second time); the table shows the median of the ratios
and their spread. CPU time counts what the process and its workers took, starting included: what
else the machine does changes it less than seconds. Exit code 1 if a median is above 1.05.

PICTURES is a folder of pictures. `--members` is how many small pictures a tar of tars has that is
listed and planned, `--entries` how many rows are planned that come from no archive.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shards.making.tar import BLOCK, header

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 1000
BYTES = 400  # of each small picture
SLOWER = 1.05
PLAN = """
import tempfile
from shards.making.listing import list_corpus
from shards.making.plan import make_plans
from shards.options import Options
from shards.sources.archive import TarSource
with tempfile.TemporaryFile() as file:
    make_plans(list_corpus([TarSource({source!r})], 0, None), Options(), {{"train": file}})
"""
SHARD = """
from shards.options import Options
from shards.run import shard
shard([{source!r}], {dest!r}, Options(min_side=1, check={check!r}), workers=1)
"""
AUGMENT = """
import sys
from pipeline.cli.main import main
sys.argv = ["pipeline", "shard", {source!r}, "--out", {dest!r}, "--device", "cpu", "--workers", "1"]
sys.argv += ["--augment", "shards/augment/lic.yaml"]
main()
"""
SYNTHETIC = "from tests.benchmarks.shards import plan_here; plan_here({entries})"


def tar_of_tars(path: Path, members: int) -> None:
    """Write a tar of `CLASSES` tars that hold `members` small files together."""
    body = bytes(BYTES) + bytes(-BYTES % BLOCK)
    with path.open("wb") as file:
        for number in range(CLASSES):
            names = (f"n{number:08d}_{one}.JPEG" for one in range(members // CLASSES))
            inner = b"".join(header(name, BYTES) + body for name in names) + bytes(2 * BLOCK)
            file.write(header(f"n{number:08d}.tar", len(inner)) + inner)
        file.write(bytes(2 * BLOCK))


@contextlib.contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a folder with the project as it was at `commit`."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", there, commit], check=True, capture_output=True)
        try:
            yield there
        finally:
            subprocess.run([*git, "remove", "--force", there], check=True)


def work_of(root: Path, code: str) -> float:
    """Return the CPU seconds that `code` takes with the project in `root`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", code]
    subprocess.run(command, env=environment, cwd=root, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def pairs(before: Path, code: str, repeats: int) -> list[tuple[float, float]]:
    """Return CPU seconds of the older code and of this one, `repeats` times in turn."""
    found = []
    for turn in range(repeats):
        sides = [before, ROOT] if turn % 2 == 0 else [ROOT, before]
        taken = {side: work_of(side, code.replace("@", f"{turn}-{side == ROOT}")) for side in sides}
        found.append((taken[before], taken[ROOT]))
    return found


def things(asked: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Return the code of each thing that is compared, by name; "@" is another word each time."""
    tar = folder / "tars.tar"
    tar_of_tars(tar, asked.members)
    found = {
        f"list and plan {asked.members:,} members of a tar of tars": PLAN.format(source=str(tar)),
        f"list and plan {asked.entries:,} entries": SYNTHETIC.format(entries=asked.entries),
    }
    for check in ("full", "header", "none"):
        dest = str(folder / f"{check}-@")
        code = SHARD.format(source=str(asked.pictures.resolve()), dest=dest, check=check)
        found[f"shard {asked.pictures.name}, check {check}, 1 worker"] = code
    found[f"shard and augment {asked.pictures.name} by lic.yaml, 1 worker"] = AUGMENT.format(
        source=str(asked.pictures.resolve()), dest=str(folder / "augmented-@")
    )
    return {name: code for name, code in found.items() if asked.only in name}


def main() -> int:
    """Compare, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--only", default="", metavar="WORDS", help="what has these in its name")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--members", type=int, default=200_000)
    parser.add_argument("--entries", type=int, default=500_000)
    asked = parser.parse_args()
    slower = []
    print("| what | before, CPU s | now, CPU s | now / before |\n|---|---|---|---|")
    with checked_out(asked.commit) as before, tempfile.TemporaryDirectory() as folder:
        for name, code in things(asked, Path(folder)).items():
            found = pairs(before, code, asked.repeats)
            old, new = (statistics.median(side) for side in zip(*found, strict=True))
            ratios = [now / then for then, now in found]
            middle = statistics.median(ratios)
            spread = f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {name} | {old:.2f} | {new:.2f} | {spread} |", flush=True)
            slower += [name] if middle > SLOWER else []
    for name in slower:
        print(f"slower by more than {SLOWER - 1:.0%}: {name}")
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
