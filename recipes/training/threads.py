"""Sets the threads of a process on a CPU: their number decides in which order sums are added.

So they are the recipe's, and a run keeps to those that it began with. A shell's OMP_NUM_THREADS,
which launchers set as well, decides nothing.
"""

from __future__ import annotations

import logging
import os

import torch

from pipeline.codec import architectures
from pipeline.common.machine import usable_cores
from pipeline.evaluation.complexity import count_parameters
from recipes.config.schema import Run
from recipes.launching import ranks
from recipes.training.checkpoint import Checkpoint
from recipes.training.module import run_config
from recipes.training.session import Session

KEY = "threads"
# Weights times pixels of a process's step, below which threads cost more than they gain: a small
# step is thousands of operations that each wait for all threads. A smaller model gains from two
# threads at 1.5e10, `tiny` only beyond 7e10 (docs/training.md, tests/benchmarks/threads.py).
LITTLE = 1e10
log = logging.getLogger(__name__)


def settle(run: Run, session: Session, kept: Checkpoint | None) -> int | None:
    """Let torch compute with the threads of `run`, which goes on from `kept`; return how many.

    None: it trains on a GPU, where they decide nothing.
    """
    accelerator = session.accelerator
    if accelerator.device.type != "cpu":
        return None
    processes = ranks.number(os.environ.get("LOCAL_WORLD_SIZE")) or accelerator.num_processes
    asked = _asked()
    cores = asked or max(1, usable_cores() // processes)
    begun = None if kept is None else ranks.number(kept.about.get(KEY))
    threads = run.speed.threads or _begun(run, begun, cores) or _suitable(run, processes, cores)
    torch.set_num_threads(threads)
    said = os.environ.get(ranks.THREADS)
    if said not in (None, str(threads), str(asked)) and ranks.THREADS not in session.ignored:
        session.ignored = {**session.ignored, ranks.THREADS: said}
        if session.main:
            log.info("train: ignored %s=%s: speed.threads is %d", ranks.THREADS, said, threads)
    return threads


def _begun(run: Run, begun: int | None, cores: int) -> int | None:
    """Return the threads that a run began with, if this machine has as many cores."""
    if begun is None or begun < 1:
        return None
    if begun <= cores:
        return begun
    log.warning(
        "%s: was begun with %d threads, and there are %d cores for it here: results are equal up to"
        " rounding (speed.threads=%d keeps them the same to the last bit)",
        run.id,
        begun,
        cores,
        begun,
    )
    return None


def _suitable(run: Run, processes: int, cores: int) -> int:
    """Return how many threads, at most `cores`, speed a step of `run` up."""
    config = run_config(run)
    with torch.device("meta"):
        weights = count_parameters(architectures.load(config.architecture).model(config))
    pixels = run.stage.batch * run.stage.crop**2 // processes
    return cores if weights * pixels >= LITTLE else 1


def _asked() -> int | None:
    """Return the threads that the command line of a launcher gives to each process."""
    parents = ranks.ancestors()
    return ranks.threads_asked(parents[0]) if parents else None
