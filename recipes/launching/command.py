"""The words before the training script: how `accelerate launch` starts the ranks."""

from __future__ import annotations

from typing import Protocol

# Stands in a job's command where its engine puts the options by which the machines find each other.
RENDEZVOUS = "{rendezvous}"


class Machines(Protocol):
    """What a job gets: `nodes` machines, `cpus` and `gpus` on each, `ranks` in all."""

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


def launch_words(resources: Machines, options: list[str]) -> list[str]:
    """Return `accelerate launch` with its options, for every machine of the job.

    Without a GPU, Accelerate must be told by its variable: `--cpu` with several processes and a
    config with `use_cpu` both train separate models without a word. With DeepSpeed it must not be
    told: that would turn DeepSpeed off. Nor may DeepSpeed reach the other nodes by ssh, as it
    would unless it is told that each node has a launcher of its own.
    """
    deepspeed = "--use_deepspeed" in options
    words = [] if resources.gpus or deepspeed else ["env", "ACCELERATE_USE_CPU=true"]
    words += ["accelerate", "launch"]
    words += ["--num_processes", str(resources.ranks), "--num_machines", str(resources.nodes)]
    words += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    per_node = resources.ranks // resources.nodes
    words += ["--num_cpu_threads_per_process", str(max(1, resources.cpus // per_node))]
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
