"""The words before the training script: how `accelerate launch` starts the ranks."""

from __future__ import annotations

from typing import Protocol

from recipes.launching.ranks import OWN_LAUNCHER, THREADS_OPTION

# Stands in a job's command where its engine puts the options by which the machines find each other.
RENDEZVOUS = "{rendezvous}"


# The program that jobs run in place of `accelerate launch`, and its option for machines without
# GPUs.
LAUNCHER = ("python", "-P", "-m", OWN_LAUNCHER)
ON_CPUS = "--on_cpus"


class Machines(Protocol):
    """The machines of a job: `nodes` of them, `cpus` and `gpus` on each, `ranks` in all."""

    @property
    def nodes(self) -> int:
        """Machines."""

    @property
    def cpus(self) -> int:
        """CPU cores of a machine."""

    @property
    def gpus(self) -> int:
        """GPUs of a machine."""

    @property
    def ranks(self) -> int:
        """Processes that train together, over all machines."""


def cpu_variables(gpus: int, *, deepspeed: bool = False) -> dict[str, str]:
    """Return the variables with which processes without GPUs train together.

    Accelerate must be told by its variable: `--cpu` with several processes and a config with
    `use_cpu` both train separate models without a word. With DeepSpeed it must not be told: that
    would turn DeepSpeed off.
    """
    return {} if gpus or deepspeed else {"ACCELERATE_USE_CPU": "true"}


def common_words(processes: int, machines: int, threads: int) -> list[str]:
    """Return the options that every launch has: precision and compiling are the recipe's."""
    return [
        *("--num_processes", str(processes), "--num_machines", str(machines)),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        *(THREADS_OPTION, str(max(1, threads))),
    ]


def launch_words(resources: Machines, options: list[str]) -> list[str]:
    """Return a launcher with the options of `accelerate launch`, for every machine of the job.

    DeepSpeed must not reach the other nodes by ssh, as it would unless it is told that each node
    has a launcher of its own.
    """
    deepspeed = "--use_deepspeed" in options
    words = [*LAUNCHER]
    if cpu_variables(resources.gpus, deepspeed=deepspeed):
        words.append(ON_CPUS)
    per_node = resources.ranks // resources.nodes
    words += common_words(resources.ranks, resources.nodes, resources.cpus // per_node)
    if resources.ranks > 1 and not deepspeed:
        words.append("--multi_gpu")
    if resources.nodes > 1:
        words += ["--deepspeed_multinode_launcher", "standard"] if deepspeed else []
        words.append(RENDEZVOUS)
    return [*words, *options]


def rendezvous(rank: str, host: str, port: str) -> str:
    """Return the options by which machines find each other, of shell text for each value."""
    return (
        f"--rdzv_backend c10d --machine_rank {rank}"
        f" --main_process_ip {host} --main_process_port {port}"
    )
