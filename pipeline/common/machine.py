"""What this process may use of its machine: cores and memory, as a container limits them too."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
# Version 1 of control groups says "no limit" with a number near this one.
UNLIMITED = 2**60


def usable_cores(root: Path = ROOT) -> int:
    """Return the cores that this process may use: by its affinity and its control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(root) if quota > 0]
    return max(1, min([cores, *quotas]))


def usable_memory(root: Path = ROOT) -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_memory_limits(root)])


def worker_count(bytes_each: int, root: Path = ROOT) -> int:
    """Return how many workers to start when each may take `bytes_each`: one a core, at least 1."""
    return max(1, min(usable_cores(root), usable_memory(root) // max(1, bytes_each)))


def give_back_memory() -> None:
    """Give freed memory that the C library keeps for later back to the system, where it can.

    glibc keeps what lies between blocks in use. Over weeks that grows, where what is in use does
    not. It takes some ten milliseconds for 100 MB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _memory_limits(root: Path) -> Iterator[int]:
    for kind, folder in _groups(root):
        name = "memory.max" if kind == "" else "memory.limit_in_bytes"
        if kind in ("", "memory"):
            with suppress(OSError, ValueError):  # "max" is no number
                limit = int((folder / name).read_text())
                if 0 < limit < UNLIMITED:
                    yield limit


def _quotas(root: Path) -> Iterator[float]:
    """Yield limits in cores: the microseconds a period that a control group may compute."""
    for kind, folder in _groups(root):
        with suppress(OSError, ValueError):
            if kind == "":
                quota, period = map(int, (folder / "cpu.max").read_text().split())
            elif kind == "cpu":
                quota = int((folder / "cpu.cfs_quota_us").read_text())
                period = int((folder / "cpu.cfs_period_us").read_text())
            else:
                continue
            yield quota / max(1, period)


def _groups(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield this process's control groups and those above: the controller ("": version 2), folder.

    Inside a container, /proc may name the group as the host sees it: then only the topmost folder
    is there, and is the container's.
    """
    mounts = root / "sys" / "fs" / "cgroup"
    try:
        lines = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for kind in controllers.split(","):
            top = mounts / kind if kind else mounts
            place = top / path.lstrip("/")
            while True:
                if place.is_dir():
                    yield kind, place
                if place == top or top not in place.parents:
                    break
                place = place.parent
