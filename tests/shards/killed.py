"""Runs `shard` again and again and kills it at random instants; prints how often.

    python -m tests.shards.killed SOURCE DEST KILLS SEED

Processes are forked from this one, which has imported everything, so an attempt takes no start-up.
Whenever an attempt comes to its end, the destination must equal an undisturbed one, then it is
emptied and work begins anew. It ends with a last attempt that nobody disturbs.
"""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil

from shards.errors import ShardsRuntimeError
from shards.options import Options
from shards.run import shard
from tests.patience import patience
from tests.shards.making import checksums

OPTIONS = Options(shard_size=30_000, min_side=32)


def main(source: str, dest: Path, kills: int, seed: int) -> None:
    """Kill `kills` times, then compare."""
    chance = random.Random(seed)
    whole = dest.with_name("undisturbed")
    start = time.monotonic()
    assert ended(attempt(source, whole, workers=1)) == 0
    duration = time.monotonic() - start
    expected = checksums(whole)
    killed = workers_killed = 0
    while killed < kills:
        workers = 2 if killed % 4 == 0 else 1
        process = attempt(source, dest, workers)
        time.sleep(chance.random() * duration)
        victims = children(process) if killed % 8 == 0 else []
        for victim in victims[:1] or [process]:
            os.kill(victim, signal.SIGKILL)
        status = ended(process)
        if status == 0:
            assert checksums(dest) == expected
            shutil.rmtree(dest)
        else:
            assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 3
            killed += 1
            workers_killed += bool(victims)
    assert ended(attempt(source, dest, workers=1)) == 0
    assert checksums(dest) == expected
    print(killed, workers_killed)  # noqa: T201


def attempt(source: str, dest: Path, workers: int) -> int:
    """Start a process that makes the shards; return its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    # An attempt takes seconds: one that waits for ever says where.
    faulthandler.dump_traceback_later(patience(300), exit=True)
    try:
        shard([source], dest, OPTIONS, workers=workers)
        status = 0
    except ShardsRuntimeError as error:
        status = 3 if "was killed" in str(error) else 1
    finally:
        os._exit(status)


def ended(process: int) -> int:
    """Wait for `process`; return 0 if it succeeded."""
    return os.waitpid(process, 0)[1]


def children(parent: int) -> list[int]:
    """Return the worker processes of `parent`, once there is one or `parent` ended."""
    while True:
        workers = [child.pid for child in psutil.Process(parent).children() if _is_worker(child)]
        over = os.waitid(os.P_PID, parent, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if workers or over:
            return workers
        time.sleep(0.01)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any("pipeline.common.workers" in word for word in process.cmdline())
    except psutil.Error:
        return False


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
