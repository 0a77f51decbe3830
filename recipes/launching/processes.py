"""Joins the processes of a launch, and refuses launches that would train separate models."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipeline.common.errors import FAILURE
from pipeline.common.locks import FolderInUseError, FolderLostError, folder_lock
from recipes.config.bundled import shipped
from recipes.config.schema import Recipe
from recipes.config.settings import RecipeError
from recipes.launching import environment, ranks
from recipes.launching.accelerate import LAUNCHER
from recipes.launching.deepspeed import refuse_other_training
from recipes.launching.owner import AGAIN
from recipes.launching.signals import StopNow, StopRequest

T = TypeVar("T")

# Seconds to wait for the job that this one continues, which may be about to end.
PATIENCE = 150.0
# Seconds after which torch itself gives up on a rank that hangs, at least: the watchdog comes first
# and says which one.
LEAST_SILENCE = 1800.0
# Seconds that the other ranks give to the one that reports which rank hangs.
SECONDS_BEHIND = 5.0
# Of Linux's prctl(2): the signal that this process gets when its parent dies.
_PR_SET_PDEATHSIG = 1
_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
log = logging.getLogger(__name__)


def start(recipe: Recipe) -> Any:
    """Return an `Accelerator` for the way this process was launched, as the recipe decides.

    Whatever the environment says otherwise was taken out by `settle` before.
    Raises `RecipeError` when fewer processes train together than were asked for.
    """
    parents = ranks.ancestors()
    patience = ranks.settle(os.environ, parents)
    _find_deepspeed_file()
    silence = timedelta(seconds=max(LEAST_SILENCE, 3 * recipe.launch.patience))
    if patience is not None:
        _meet(patience, silence)
    accelerator = _accelerator(recipe.speed.accumulate, silence)
    parent = parents[0] if parents else []
    ranks.check_together(accelerator.num_processes, recipe.processes, os.environ, parent)
    _check_deepspeed(accelerator, recipe)
    return accelerator


def settle() -> dict[str, str]:
    """Remove from the environment what only the recipe decides, before torch is imported.

    Return what was ignored. Raises `RecipeError` for what can't be ignored.
    """
    environment.refuse_unsupported(os.environ)
    ignored = environment.take_out(os.environ)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") and not os.environ.get("LOCAL_RANK"):
        # DeepSpeed's launchers give every process its rank.
        ignored["ACCELERATE_USE_DEEPSPEED"] = os.environ.pop("ACCELERATE_USE_DEEPSPEED")
    if ignored:
        log.warning("train: ignored, the recipe decides: %s", environment.listed(ignored))
    return ignored


def _accelerator(accumulate: int, silence: timedelta) -> Any:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    settings: dict[str, Any] = {"mixed_precision": "no"}
    group = InitProcessGroupKwargs(timeout=silence)
    if not torch.cuda.is_available():
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
            # Else Accelerate would assume one process, and DeepSpeed would compile for a minute.
            group = InitProcessGroupKwargs(backend="gloo", timeout=silence)
            _without_compiled_communication()
        else:
            settings["cpu"] = True
    with _accumulating(accumulate):
        return Accelerator(
            gradient_accumulation_steps=accumulate,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[group],
            **settings,
        )


@contextmanager
def _accumulating(parts: int) -> Iterator[None]:
    """Set the variable that DeepSpeed's plugin reads and Accelerate prefers to its argument."""
    os.environ[_ACCUMULATION] = str(parts)
    try:
        yield
    finally:
        del os.environ[_ACCUMULATION]


def _meet(patience: float, silence: timedelta) -> None:
    """Join the other processes, within `patience` seconds; raises `RecipeError` without them.

    torch itself would wait for half an hour.
    """
    import torch
    import torch.distributed as dist

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if dist.is_initialized():
        return
    log.info("train: waits %.0f s for the other processes at %s:%d", patience, host, port)
    try:
        # torch does not list it among what it exports.
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, world, rank == 0, timedelta(seconds=patience)
        )
    except (RuntimeError, OSError) as error:
        raise RecipeError(
            f"RANK={rank} and WORLD_SIZE={world} say that this is one of {world} processes, and"
            f" the others did not come to {host}:{port} within {patience:.0f} s ({_first(error)}):"
            " unset RANK and WORLD_SIZE if another launcher left them behind"
        ) from error
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group(backend, timeout=silence, store=store, rank=rank, world_size=world)


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _check_deepspeed(accelerator: Any, recipe: Recipe) -> None:
    """Raise `RecipeError` when a file of DeepSpeed's decides what the recipe does."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None:
        return
    refuse_other_training(plugin.deepspeed_config, recipe.speed.accumulate)


def from_first(accelerator: Any, value: T) -> T:
    """Return the first process's `value`, on all of them; it can be pickled."""
    from accelerate.utils import broadcast_object_list

    said: list[T] = broadcast_object_list([value]) if accelerator.num_processes > 1 else [value]
    return said[0]


@contextmanager
def held_by_first(accelerator: Any, folder: Path, stop: StopRequest) -> Iterator[None]:
    """Let the first process lock `folder` for all; raises `RecipeError` when another job holds it.

    A network's file system takes back the locks of a lost machine after a minute or two.
    Asked to stop while it waits, all raise `StopNow`.
    """
    refused: str | None = None
    stopped = False
    with ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                with stop.at_once():
                    stack.enter_context(folder_lock(folder, PATIENCE, _job(), _end_at_once))
            except FolderInUseError as error:
                refused = f"{error}: wait until that has ended, or give another out"
            except StopNow:
                stopped = True
        refused, stopped = from_first(accelerator, (refused, stopped))
        if stopped:
            raise StopNow
        if refused is not None:
            raise RecipeError(refused)
        yield


def _job() -> str:
    """Return the scheduler's name for the job that this process belongs to."""
    names = (("SLURM_JOB_ID", "Slurm job"), ("JOB_NAME", "job"), ("PBS_JOBID", "PBS job"))
    return next((f"{kind} {os.environ[name]}" for name, kind in names if os.environ.get(name)), "")


def _end_at_once(lost: FolderLostError) -> None:
    """End this process, which was taken for dead: what it writes would mix with another's."""
    log.error("train: %s", lost)
    report_failure(f"train: {lost}")
    os._exit(FAILURE)


def end_with_launcher() -> None:
    """Ask this process to stop, by SIGTERM, when the launcher that started it dies (on Linux)."""
    launcher = os.environ.pop(LAUNCHER, None)
    known = launcher is not None or ranks.started_by(ranks.ancestors()[:1])
    if not sys.platform.startswith("linux") or not known:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if str(os.getppid()) != launcher and (os.getppid() == 1 or _gone(launcher)):
        os.kill(os.getpid(), signal.SIGTERM)


def _gone(launcher: str | None) -> bool:
    return launcher is not None and not Path("/proc", launcher).exists()


def report_failure(sentence: str) -> None:
    """Give torch's launcher, if there is one, the `sentence` that its own report ends with."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    extra = {"timestamp": str(int(time.time()))}
    with contextlib.suppress(OSError):
        Path(path).write_text(
            json.dumps({"message": {"message": sentence, "extraInfo": extra}}), encoding="utf-8"
        )


def report_hang(sentence: str) -> None:
    """Say that a rank hangs, here and in the report of torch's launcher."""
    log.error("train: %s", sentence)
    report_failure(f"train: {sentence}")


def end_hung(*, first: bool) -> NoReturn:
    """End this process at once, with the code that a scheduler queues again.

    Its main thread waits for a rank that hangs, and can't end it. The process that ends `first`
    is the one whose sentence torch's launcher reports.
    """
    if not first:
        time.sleep(SECONDS_BEHIND)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(AGAIN)


def leave(code: int) -> NoReturn:
    """End this process with `code`, whatever its children do."""
    for child in multiprocessing.active_children():
        child.kill()
        child.join(1.0)
    if multiprocessing.active_children():
        # Python would wait for a child that the kernel holds because a disk does not answer.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def sharded(accelerator: Any) -> bool:
    """Tell whether DeepSpeed holds the state of training."""
    return str(accelerator.distributed_type.value) == "DEEPSPEED"


def zero_stage(accelerator: Any) -> int:
    """Return the stage of DeepSpeed ZeRO, 0 without DeepSpeed."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return 0 if plugin is None else int(plugin.zero_stage)


def prepare_for(accelerator: Any, pictures: int) -> None:
    """Tell DeepSpeed, if it is there, how many `pictures` a process takes at a time."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = pictures


def _find_deepspeed_file() -> None:
    """Let the DeepSpeed file that a launch file of this project names be found from any folder."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if path is not None:
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = shipped(path)


def _without_compiled_communication() -> None:
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False
