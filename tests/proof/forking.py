"""Commands as forked processes, which need no start-up of their own."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn


def typed(words: list[str]) -> int:
    """Do what a user typed, in this process; return the exit code."""
    if words[0].endswith(".py"):
        from recipes.train import main as train

        return train(words[1:])
    from pipeline.cli.main import main

    try:
        main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def forked(log: Path, environment: Mapping[str, str], work: Callable[[], int]) -> int:
    """Do `work` in a forked process with its output in `log`; return the process's id."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        _child(log, environment, work)
    return process


def _child(log: Path, environment: Mapping[str, str], work: Callable[[], int]) -> NoReturn:
    code = 1
    try:
        atexit._clear()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        os.environ.update(environment)
        time.tzset()
        random.seed()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(environment["PROOF_FOLDER"])
        code = work()
        threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def waited(process: int, seconds: float, *, reap: bool = True) -> int | None:
    """Wait for a child that long at most; return its status when it has ended, if to `reap`."""
    descriptor = os.pidfd_open(process)
    try:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, seconds))
        return os.waitpid(process, 0)[1] if ready and reap else None
    finally:
        os.close(descriptor)


def import_all(chosen: list[str]) -> None:
    """Import what the `chosen` stages need, so that a forked one has no start-up."""
    names = ["shards.run", "pipeline.cli.main", "pipeline.codec.folders"]
    if "train" in chosen:
        names += ["mlflow", "recipes.train", "recipes.training.loop", "recipes.training.preflight"]
        names += ["accelerate", "s3fs", "boto3", "pipeline.tracking.delivery"]
    if "evaluate" in chosen:
        names += ["pipeline.evaluation.run", "pipeline.tracking.flavour", "matplotlib.pyplot"]
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
