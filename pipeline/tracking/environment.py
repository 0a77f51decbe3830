"""Describes what a run is made with: code, packages, hardware, scheduler's ids; no secrets."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pipeline.common.machine import usable_cores
from pipeline.common.secrets import redacted

LONGEST_DIFF = 5_000_000
SLURM = (
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT", "SLURM_JOB_NODELIST", "SLURM_JOB_NUM_NODES", "SLURM_JOB_PARTITION",
    "SLURM_CLUSTER_NAME",
)  # fmt: skip


def surroundings() -> dict[str, Any]:
    """Describe this process's code, packages, machine and Slurm job, as JSON values."""
    return {
        "command": [redacted(word) for word in sys.argv],
        "git": git(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": packages(),
        "hardware": hardware(),
        "slurm": {key: os.environ[key] for key in SLURM if key in os.environ},
    }


def tags_from(details: Mapping[str, Any]) -> dict[str, str]:
    """Return tags to search runs by, from the details that `surroundings()` returns."""
    hardware, git = details["hardware"], details["git"]
    tags = {
        "mlflow.source.name": Path(details["command"][0]).name,
        "mlflow.source.type": "LOCAL",
        "host": hardware["host"],
        "cpu": f"{hardware['cpu']} x {hardware['cores']}",
        "gpu": ", ".join(hardware["gpus"]) or "none",
        "python": details["python"],
        "torch": details["packages"].get("torch", "none"),
        **{key.lower().replace("_", ".", 1): value for key, value in details["slurm"].items()},
    }
    if git:
        tags |= {"mlflow.source.git.commit": git["commit"], "git.changed": str(git["changed"])}
    return tags


def git(folder: Path) -> dict[str, Any]:
    """Return commit, branch and changed files of the checkout around `folder`; {} if there is none.

    `diff` has the changes in tracked files since the commit, without known secrets.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    with _copied_index(folder) as index:
        status = (_git(folder, "status", "--porcelain", **index) or "").splitlines()
        diff = _git(folder, "diff", "HEAD", **index) or ""
    cut = "" if len(diff) <= LONGEST_DIFF else f"\n[cut after {LONGEST_DIFF} characters]\n"
    return {
        "commit": commit.strip(),
        "branch": (_git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "").strip(),
        "changed": len(status),
        "files": status,
        "diff": redacted(diff[:LONGEST_DIFF]) + cut,
    }


@cache
def packages() -> dict[str, str]:
    """Return the installed distributions and their versions, by name.

    They are looked up once: a process keeps the modules that it has imported, and reading some two
    hundred files takes a third of a second.
    """
    versions = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def hardware() -> dict[str, Any]:
    """Return host, processor, cores this process may use, memory in bytes, and GPUs by name."""
    import psutil
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(index) for index in range(count)],
        "cuda": torch.version.cuda,
    }


@contextmanager
def _copied_index(folder: Path) -> Iterator[dict[str, str]]:
    """Yield variables that let git refresh a copy of the checkout's index.

    While git refreshes an index it locks it, and a process that is killed then leaves the lock to
    its user.
    """
    place = (_git(folder, "rev-parse", "--git-path", "index") or "").strip()
    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            # With its time, by which git tells what may have changed since.
            variables = {"GIT_INDEX_FILE": shutil.copy2(folder / place, temporary)}
        except OSError:
            variables = {}
        yield variables


def _git(folder: Path, *words: str, **variables: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            timeout=30,
            check=False,
            env={**os.environ, **variables},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _cpu() -> str:
    """Return the processor's name; Linux has it only in /proc."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()
