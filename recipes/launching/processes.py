"""Start the processes' common ground, and refuse launches that would train several models apart."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipeline.common.locks import FolderInUseError, folder_lock
from recipes.config.bundled import shipped
from recipes.config.schema import Recipe
from recipes.config.settings import RecipeError

T = TypeVar("T")

# Seconds to wait for a job that is about to end: that which this one was queued to go on from.
PATIENCE = 150.0
# What a launcher is told to run: a path or, after -m, a module.
SCRIPT = ("train.py", "recipes.train")


def start(recipe: Recipe) -> Any:
    """Return an `Accelerator` for the way this process was launched.

    Raises `RecipeError` when fewer processes train together than were asked for, or with FSDP.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    refuse_fsdp(os.environ)
    _find_deepspeed_file()
    cpu = not torch.cuda.is_available()
    sharded = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    settings: dict[str, Any] = {}
    if cpu and sharded:
        # Accelerate would believe in one process, and DeepSpeed would compile for a minute.
        settings["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
        _without_compiled_communication()
    elif cpu:
        settings["cpu"] = True
    accelerator = Accelerator(
        gradient_accumulation_steps=recipe.speed.accumulate,
        step_scheduler_with_optimizer=False,
        **settings,
    )
    check_together(accelerator.num_processes, recipe.processes, os.environ, parent_command())
    return accelerator


def from_first(accelerator: Any, value: T) -> T:
    """Return the first process's `value`, on all of them; it can be pickled."""
    from accelerate.utils import broadcast_object_list

    said: list[T] = broadcast_object_list([value]) if accelerator.num_processes > 1 else [value]
    return said[0]


@contextmanager
def held_by_first(accelerator: Any, folder: Path) -> Iterator[None]:
    """Let the first process hold `folder` for all; raises `RecipeError` when another job does.

    Of a machine that was lost, a network's file system takes locks back after a minute or two.
    """
    refused: str | None = None
    with ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                stack.enter_context(folder_lock(folder, PATIENCE))
            except FolderInUseError as error:
                refused = f"{error}: wait until that has ended, or give another out"
        refused = from_first(accelerator, refused)
        if refused is not None:
            raise RecipeError(refused)
        yield


def refuse_fsdp(environment: Mapping[str, str]) -> None:
    """Raise `RecipeError` for a launch with FSDP, whose state `recipes` can't gather."""
    if environment.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise RecipeError(
            "FSDP is not supported: use recipes/accelerate/multi-gpu.yaml, or zero1.yaml to share"
            " out the optimizer's state"
        )


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


def check_together(
    together: int,
    recipe_processes: int | None,
    environment: Mapping[str, str],
    parent: Sequence[str],
) -> None:
    """Raise `RecipeError` unless as many processes train `together` as anyone asked for."""
    asked = {
        "the recipe's processes": recipe_processes,
        "the launcher (WORLD_SIZE)": _number(environment.get("WORLD_SIZE")),
        "accelerate launch (--num_processes)": processes_asked(parent),
    }
    for who, count in asked.items():
        if count is not None and count != together:
            raise RecipeError(
                f"{who} asked for {count} processes, but {together} would train here, each"
                f" launch its own model: use `pipeline train`, or on a CPU `ACCELERATE_USE_CPU="
                f"true accelerate launch --multi_gpu --num_processes {count} ...`"
            )


def processes_asked(command: Sequence[str]) -> int | None:
    """Return the number of processes that an `accelerate launch` command line asks for."""
    words = list(command)
    if not any("accelerate" in word for word in words) or "launch" not in " ".join(words):
        return None
    script = next((i for i, word in enumerate(words) if word.endswith(SCRIPT)), len(words))
    options = _options(words[:script])
    if "num_processes" in options:
        return _number(options["num_processes"])
    if "config_file" in options:
        return _configured(Path(options["config_file"]))
    return None


def _options(words: Sequence[str]) -> dict[str, str]:
    options = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name.replace("-", "_")] = value if equals else following
    return options


def _configured(path: Path) -> int | None:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return None
    return _number(config.get("num_processes")) if isinstance(config, dict) else None


def parent_command() -> list[str]:
    """Return the command line of the process that started this one; [] where it can't be seen."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [word.decode(errors="replace") for word in words]


def _number(value: object) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None
