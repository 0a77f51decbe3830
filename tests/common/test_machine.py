"""Cores and memory, as containers limit them."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
import pytest

from pipeline.common.machine import (
    give_back_memory,
    usable_cores,
    usable_memory,
    worker_count,
)

GIB = 2**30
EVERYTHING = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Make what the kernel shows of control groups under `root`."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_machine_without_control_groups_is_all_ours(tmp_path: Path) -> None:
    assert usable_memory(tmp_path) == EVERYTHING
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert worker_count(EVERYTHING * 2, tmp_path) == 1


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        # Version 2, as a container sees itself.
        ("0::/\n", {"memory.max": f"{GIB}\n", "cpu.max": "100000 100000\n"}),
        # Version 2, a group whose parent is limited: a Slurm job's step.
        (
            "0::/job/step\n",
            {
                "job/memory.max": f"{GIB}\n",
                "job/cpu.max": "50000 100000\n",
                "job/step/memory.max": "max\n",
                "job/step/cpu.max": "max 100000\n",
            },
        ),
        # Version 1, in its own group.
        (
            "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n1:name=systemd:/\n",
            {
                "memory/docker/1/memory.limit_in_bytes": f"{GIB}\n",
                "memory/memory.limit_in_bytes": "9223372036854771712\n",
                "cpu/docker/1/cpu.cfs_quota_us": "100000\n",
                "cpu/docker/1/cpu.cfs_period_us": "100000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
        ),
        # Version 1, a container that is told the host's path.
        (
            "4:memory:/docker/1\n3:cpu:/docker/1\n",
            {
                "memory/memory.limit_in_bytes": f"{GIB}\n",
                "cpu/cpu.cfs_quota_us": "10000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
        ),
    ],
)
def test_a_containers_limits_hold(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    root = machine(tmp_path, groups, files)
    assert usable_memory(root) == GIB
    assert usable_cores(root) == 1
    assert worker_count(GIB // 4, root) == 1


def test_memory_limits_workers_where_cores_do_not(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", {"memory.max": f"{GIB}\n", "cpu.max": "max 100000\n"})
    assert worker_count(GIB, root) == 1
    assert worker_count(1, root) == usable_cores(root)


@pytest.mark.parametrize("groups", ["", "nonsense", "0::/../elsewhere\n", "\0\n", "0::\n"])
def test_what_the_kernel_never_says_limits_nothing(tmp_path: Path, groups: str) -> None:
    root = machine(tmp_path, groups, {"memory.max": "what", "cpu.max": ""})
    assert usable_memory(root) == EVERYTHING


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_between_blocks_in_use_is_given_back() -> None:
    process = psutil.Process()
    blocks = [bytearray(2000) for _ in range(50_000)]
    last = bytearray(2000)  # what lies above all others keeps the heap from shrinking by itself
    full = process.memory_info().rss
    del blocks
    give_back_memory()
    assert last
    assert process.memory_info().rss < full - 50_000_000
