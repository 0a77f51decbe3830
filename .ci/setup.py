"""Make the environment of this checkout, and say what is going on: `make setup`.

    python .ci/setup.py .venv [--constraint FILE]... [--verbose]

Everything that the installer prints goes to setup.log in the environment; the terminal gets a line
for each large download, a line now and then, and the log's end when something failed. Uses `uv`
when it is on the PATH, and pip otherwise or when uv fails. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
# Smaller files arrive before anyone asks; the size is as pip writes it: "(190.5 MB)".
LARGE_MB = 20.0
SECONDS_BETWEEN_LINES = 10.0
FETCHED = re.compile(
    r"(?:Downloading|Using cached|Processing) (\S+)(?: \((\d[\d.]*) (kB|MB|GB)\))?"
)
COLLECTED = re.compile(r"Collecting (\S+)|Requirement already satisfied: (\S+)")
MEGABYTES = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}
TAIL = 25


def say(text: str) -> None:
    """Print a line at once."""
    print(f"setup: {text}", flush=True)


class Narrator:
    """Turns pip's lines into few: large downloads at once, counts every few seconds."""

    def __init__(self) -> None:
        self.packages: set[str] = set()
        self.megabytes = 0.0
        self.last = time.monotonic()

    def hear(self, line: str) -> None:
        """Take one line of the installer's output, and say what a waiting person wants to know."""
        line = line.strip()
        if found := COLLECTED.match(line):
            self.packages.add(re.split(r"[<>=!~;\[( ]", found[1] or found[2])[0].lower())
        elif found := FETCHED.match(line):
            size = float(found[2] or 0) * MEGABYTES.get(found[3], 0.0)
            self.megabytes += size
            if size >= LARGE_MB:
                self._tell(f"downloading {found[1].rsplit('/', 1)[-1]}, {size:.0f} MB")
        elif line.startswith("Installing collected packages"):
            count = line.count(",") + 1
            self._tell(f"unpacking {count} packages; this is the longest silence, a minute or two")
        if time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            self._tell(f"{len(self.packages)} packages found, {self.megabytes:.0f} MB downloaded")

    def _tell(self, text: str) -> None:
        self.last = time.monotonic()
        say(text)


def run(words: list[str], log: Path, environment: dict[str, str], verbose: bool) -> bool:
    """Run an installer, its output to `log`; return whether it succeeded."""
    narrator = Narrator()
    with log.open("a") as file:
        file.write(f"$ {' '.join(words)}\n")
        process = subprocess.Popen(
            words, cwd=ROOT, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            file.flush()
            if verbose:
                print(line, end="", flush=True)
            else:
                narrator.hear(line)
    return process.wait() == 0


def with_uv(uv: str, python: Path, constraints: list[str], gpu: bool) -> list[str]:
    """Return uv's command; it finds the build of torch for this machine itself."""
    words = [uv, "pip", "install", "--python", str(python), "--editable", ".[dev]"]
    words += [word for file in constraints for word in ("--constraint", file)]
    return [*words, "--torch-backend", "auto" if gpu else "cpu"]


def with_pip(python: Path, verbose: bool) -> list[str]:
    """Return pip's command; constraints come from PIP_CONSTRAINT, which builds see as well."""
    words = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    bar = "on" if verbose else "off"
    return [*words, "--progress-bar", bar, "--editable", ".[dev]"]


def install(folder: Path, constraints: list[str], gpu: bool, verbose: bool) -> bool:
    """Install the project with its tools into the environment; return whether it worked."""
    python, log = folder / "bin" / "python", folder / "setup.log"
    log.unlink(missing_ok=True)
    uv = shutil.which("uv")
    if uv is not None:
        say(f"uv installs about 200 packages into {folder.name}; all it says is in {log}")
        if run(with_uv(uv, python, constraints, gpu), log, {}, verbose):
            return True
        say("uv could not do it, pip tries now")
    size = "several GB, for torch comes with CUDA" if gpu else "about 500 MB"
    say(f"pip installs about 200 packages into {folder.name}, {size}; all it says is in {log}")
    if run(with_pip(python, verbose), log, {"PIP_CONSTRAINT": " ".join(constraints)}, verbose):
        return True
    sys.stderr.write("".join(log.read_text().splitlines(keepends=True)[-TAIL:]))
    return False


def main() -> int:
    """Make the environment; return 0 when it is ready."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--constraint", action="append", default=[], metavar="FILE")
    parser.add_argument("--verbose", action="store_true", help="print all that the installer says")
    given = parser.parse_args()
    if sys.version_info < OLDEST:
        sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11")
    start = time.monotonic()
    folder = given.folder.absolute()
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    gpu = shutil.which("nvidia-smi") is not None
    if not install(folder, given.constraint, gpu, given.verbose):
        say(f"failed; {folder / 'setup.log'} has the whole story")
        return 1
    (folder / ".ready").touch()
    say(f"ready in {(time.monotonic() - start) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
