"""Run the quick tests with the lowest, or the highest, versions that pyproject.toml admits.

    python .ci/versions.py lowest [--constraint FILE]... [--without-cuda] [--only-resolve]
                                  [-- PYTEST WORDS...]

Makes an environment of its own, .venv-lowest or .venv-highest. `uv` resolves the versions, which
only it can do for the lowest ones; pip installs them, so that pip's configuration holds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "highest": "highest"}
KINDS = "not slow and not slurm and not browser and not gpu"
QUICK = ("-m", KINDS, "-n", "2", "--dist", "loadfile")
# What torch's builds for CUDA need even to be imported on a machine without a GPU; others do not.
CUDA = re.compile(r"(nvidia|cuda|triton)[\w-]*==")


def run(*words: str | Path) -> None:
    """Print a command and run it in the checkout; end with its exit code when it fails."""
    print("$", *words, flush=True)
    # The constraints of the shell would pull the versions to those of `make setup`.
    environment = {**os.environ, "PIP_CONSTRAINT": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in words], cwd=ROOT, env=environment)
    if done.returncode:
        sys.exit(done.returncode)


def resolve(which: str, folder: Path, constraints: Sequence[str], cuda: bool) -> Path:
    """Write the versions of all packages to a requirements file in `folder`, and return it."""
    python, wanted = folder / "bin" / "python", folder / "requirements.txt"
    uv = shutil.which("uv")
    if uv is None:
        run(python, "-m", "pip", "install", "--quiet", "uv")
        uv = str(folder / "bin" / "uv")
    words = [uv, "pip", "compile", "pyproject.toml", "--extra", "dev", "--quiet", "--no-header"]
    words += ["--resolution", RESOLUTIONS[which], "--python", str(python), "--no-annotate"]
    words += [word for file in constraints for word in ("--constraint", file)]
    run(*words, "--output-file", wanted)
    if not cuda:
        kept = [line for line in wanted.read_text().splitlines() if not CUDA.match(line)]
        wanted.write_text("\n".join(kept) + "\n")
    return wanted


def main() -> None:
    """Resolve, install, test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=RESOLUTIONS)
    parser.add_argument("--constraint", action="append", default=[], metavar="FILE")
    parser.add_argument("--without-cuda", action="store_true", help="with a torch that has none")
    parser.add_argument("--only-resolve", action="store_true", help="install and test nothing")
    parser.add_argument("words", nargs="*", metavar="PYTEST WORDS", default=QUICK)
    given = parser.parse_intermixed_args()  # words may follow options
    folder = ROOT / f".venv-{given.which}"
    run(sys.executable, "-m", "venv", "--clear", folder)
    wanted = resolve(given.which, folder, given.constraint, not given.without_cuda)
    if given.only_resolve:
        return
    pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps")
    run(*pip, "--requirement", wanted)
    run(*pip, "--editable", ".")
    run(folder / "bin" / "python", "-m", "pip", "check")
    run(folder / "bin" / "python", "-m", "pytest", *given.words)


if __name__ == "__main__":
    main()
