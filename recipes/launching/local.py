"""Options of a launch on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from pipeline.common.machine import usable_cores
from recipes.config.bundled import ROOT
from recipes.config.settings import RecipeError
from recipes.launching.command import common_words, cpu_variables
from recipes.launching.ranks import THREADS

# Used instead of the file that `accelerate config` may have written for something else.
PLAIN = "recipes/accelerate/gpu.yaml"


class Asked(Protocol):
    """A recipe's settings for launches."""

    @property
    def processes(self) -> int | None:
        """Processes to train with; None: one for each GPU, one on a CPU."""

    @property
    def threads(self) -> int | None:
        """Threads that a process computes with on a CPU; None: by the machine's cores."""


def local_options(recipe: Asked, config: Path | None) -> tuple[list[str], dict[str, str]]:
    """Return options of `accelerate launch` for this machine, and environment variables to set.

    `config` is a launch file to go by in place of what this machine suggests. Raises `RecipeError`
    when it is not there.
    """
    if config is not None:
        if not config.is_file():
            raise RecipeError(f"--accelerate: there is no file {config}")
        return ["--config_file", str(config)], {}
    import torch

    gpus = torch.cuda.device_count()
    processes = recipe.processes or max(1, gpus)
    threads = _on_gpus() if gpus else recipe.threads
    threads = threads or usable_cores() // processes
    options = ["--config_file", str(ROOT / PLAIN), *common_words(processes, 1, threads)]
    if processes > 1:
        # A port of its own: two trainings on one machine must not meet.
        return [*options, "--multi_gpu", "--main_process_port", "0"], cpu_variables(gpus)
    return ([*options] if gpus else [*options, "--cpu"]), {}


def _on_gpus() -> int | None:
    """Return the number of threads that the shell asks for: beside a GPU, it changes no result."""
    given = os.environ.get(THREADS, "")
    return int(given) if given.isdecimal() else None
