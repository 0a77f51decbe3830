"""Launches that go wrong without an error message, for `pipeline doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from recipes.launching import environment, ranks
from recipes.launching.command import cpu_variables


def pitfalls(variables: Mapping[str, str], gpus: int) -> Iterator[tuple[str, str]]:
    """Yield what goes wrong on a machine with `gpus` GPUs and these `variables`, and why.

    `pipeline train` gets past all of them; they concern `accelerate launch` alone.
    """
    for name, value in cpu_variables(gpus).items():
        yield (
            "accelerate launch",
            "on CPUs `--cpu --num_processes 2` starts one process and `--multi_gpu` alone two that "
            f"know nothing of each other: set {name}={value} and keep --multi_gpu",
        )
    if variables.get("ACCELERATE_USE_CPU"):
        yield "deepspeed", "ACCELERATE_USE_CPU is set, which turns DeepSpeed off: unset it"
    for claim in ranks.claims(variables):
        yield (
            str(claim),
            "left from another launch: `accelerate launch` would wait for its other processes, and"
            " `pipeline train` refuses to start",
        )
    _, ignored = environment.for_own_launch(variables)
    steering = [name for name in ignored if name != "ACCELERATE_USE_CPU"]
    if steering:
        yield (
            ", ".join(steering),
            "would change what is trained: `pipeline train` and the training script ignore or"
            " refuse it",
        )
    cache = variables.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    for name in ("default_config.yaml", "default_config.json"):
        file = Path(cache, "accelerate", name)
        if file.is_file():
            yield (
                str(file),
                "`accelerate launch` reads it where no --config_file is given; `pipeline train`"
                " does not",
            )
