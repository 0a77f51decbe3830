"""The logs of jobs: followed as they grow, and the line in them that says what went wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

LAST_BYTES = 16384
ERROR = re.compile(r"([A-Za-z_][\w.]*(Error|Exception|Interrupt)\b|[a-z]+: )")
# Lines of launchers, of Slurm and of the job's script, which say nothing about what went wrong.
LAUNCHERS = re.compile(
    r"srun: |slurmstepd|Terminated|[EW][0-9]{4} |[0-9-]{10}T[0-9:]{8}Z \S+ starts on "
    r"|subprocess\.CalledProcessError|torch\.distributed\."
)
# Messages of launchers about a process that was killed, and so could not report anything.
KILLED = re.compile(r"died with <Signals\.(SIG\w+)|Signal \d+ \((SIG\w+)\) received by PID")


def last_words(paths: Sequence[Path]) -> str:
    """Return the line of a job's logs that says what went wrong, as far as one can tell.

    That is the last line of an error, before what launchers say about the end of their processes,
    or that a process was killed; without one, the last line of all.
    """
    for path in reversed(paths):
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - LAST_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            continue
        if found := _error(lines):
            return found
    return ""


def _error(lines: Sequence[str]) -> str:
    """Return the line that says what went wrong, empty if there are none."""
    last, error = "", ""
    for line in lines:
        killed = KILLED.search(line)
        if killed:
            error = f"its process was killed by {killed[1] or killed[2]}"
            error += " (out of memory?)" if "SIGKILL" in error else ""
        elif line.strip() and not LAUNCHERS.match(line):
            last = line.strip()
            error = last if ERROR.match(last) else error
    return error or last


def read_on(path: Path, seen: dict[Path, int]) -> str:
    """Return what was added to the file since it was last read; `seen` keeps how far that was."""
    with path.open("rb") as file:
        file.seek(seen.get(path, 0))
        content = file.read()
    seen[path] = seen.get(path, 0) + len(content)
    return content.decode(errors="replace")
