"""Run `accelerate launch` for `pipeline train` and jobs, and exit with the code of its processes.

The launchers behind `accelerate launch` exit with 1 whatever happened, print a traceback over the
sentence that training has printed, and die of SIGUSR1. This one leaves signals to the processes
that train.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from pipeline.common.documents import DocumentError, reading_yaml
from pipeline.common.errors import FAILURE, USAGE
from recipes.launching import notice
from recipes.launching.owner import died, end_with_owner

# Keys of a launch file that hold whole numbers, and the least value of each.
NUMBERS = {"num_processes": 1, "num_machines": 1, "machine_rank": 0, "main_process_port": 0}
# Signals that ask the processes that train to stop, which their launcher must outlive.
LEFT_TO_RANKS = (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# Tells the processes that train which process has started them.
LAUNCHER = "CCA_LAUNCHER_PID"


def main() -> int:
    """Launch for an owner, which holds this process's standard input."""
    end_with_owner()
    return launch()


def launch() -> int:
    """Launch what the command line says; return the first failed process's exit code."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for number in LEFT_TO_RANKS:
        signal.signal(number, signal.SIG_IGN)
    os.environ[LAUNCHER] = str(os.getpid())
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    arguments = launch_command_parser().parse_args()
    try:
        check_file(arguments.config_file)
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _code(error.returncode)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if rank and failure.exitcode == FAILURE:
            # The first process reports its own failure.
            notice.send(f"training failed in process {rank}: {failure.message}", status="failed")
        return _code(failure.exitcode)
    except (ValueError, OSError) as error:
        # The launch file or the options are wrong: no process has been started.
        sys.stderr.write(f"train: can't launch: {' '.join(str(error).split())}\n")
        return USAGE if isinstance(error, ValueError) else FAILURE
    return 0


def check_file(name: str | None) -> None:
    """Raise `ValueError` for a launch file that Accelerate could not use."""
    if name is None:
        return
    try:
        with reading_yaml():
            said = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except DocumentError as error:
        raise ValueError(f"{name} is not YAML: {error}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{name} is no launch file: it has no keys with values")
    for key, least in NUMBERS.items():
        number = said.get(key)
        if number is not None and not (type(number) is int and number >= least):
            raise ValueError(f"{name}: {key} is {number!r}, and must be a number from {least} up")


def _code(exitcode: int) -> int:
    """Return an exit code that a process may have; one that died of a signal has failed."""
    if exitcode < 0:
        sentence = died("a training process", -exitcode)
        sys.stderr.write(f"train: {sentence}\n")
        notice.send(sentence, status="failed")
        return FAILURE
    return exitcode


if __name__ == "__main__":
    sys.exit(main())
