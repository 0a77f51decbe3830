"""Compares a profile with its Slurm cluster, for `pipeline doctor --on PROFILE`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestration.amounts import CLOCK
from orchestration.engines.base import Finding
from orchestration.engines.slurm_tools import ask
from orchestration.errors import EngineError
from orchestration.profile import Resources, SlurmProfile

# A line of `scontrol show config`, and one of `sinfo` with the columns that are asked for.
SETTING = re.compile(r"(\w+)\s*= (.*)")
PARTITION = re.compile(
    r"(?P<name>[^|\s]+?)\*?\|(?P<limit>[^|]*)\|(?P<cpus>\d+)\+?\|(?P<memory>\d+)\+?\|(?P<gres>[^|]*)"
)
GPUS = re.compile(r"gpu(?::[^:,()]+)?:(\d+)")
UNITS = {"M": 1, "G": 1 << 10, "T": 1 << 20}


@dataclass(frozen=True)
class Nodes:
    """Nodes of one kind in a partition: minutes a job may take (None: any), and what a node has."""

    partition: str
    minutes: int | None
    cpus: int
    memory_mib: int
    gpus: int


def findings(profile: SlurmProfile) -> Iterator[Finding]:
    """Yield what is right and wrong with the cluster for a plan of `profile`."""
    try:
        settings = dict(SETTING.findall(ask(["scontrol", "show", "config"], profile.cluster)))
        nodes = list(_nodes(profile))
    except EngineError as error:
        yield "missing", "slurm", str(error)
        return
    yield from _settings(settings)
    yield from _partitions(profile, nodes)
    if os.environ.get("SBATCH_EXPORT", "ALL") != "ALL":
        yield "note", "SBATCH_EXPORT", "is set in this shell; plans pass what jobs need by name"


def _settings(settings: Mapping[str, str]) -> Iterator[Finding]:
    accounting = settings.get("AccountingStorageType", "").strip()
    if accounting.endswith("none") or not accounting:
        yield "note", "accounting", "none: what the queue forgets is judged by the jobs' own files"
    else:
        yield "ok", "accounting", accounting
    for name, why in {
        "KillWait": "what `scancel` gives a job to end in; `pipeline cancel` gives training more",
        "PreemptMode": "with CANCEL a preempted job has ended: `pipeline retry` submits it again",
        "JobRequeue": "plans ask for being queued again themselves",
        "MaxArraySize": "most parts of one array",
    }.items():
        if name in settings:
            yield "ok", name, f"{settings[name].strip()} ({why})"


def _nodes(profile: SlurmProfile) -> Iterator[Nodes]:
    said = ask(["sinfo", "--noheader", "--exact", "--format=%P|%l|%c|%m|%G"], profile.cluster)
    for line in said.splitlines():
        if found := PARTITION.fullmatch(line.strip()):
            gpus = sum(int(count) for count in GPUS.findall(found["gres"]))
            memory, cpus = int(found["memory"]), int(found["cpus"])
            yield Nodes(found["name"], _minutes(found["limit"]), cpus, memory, gpus)


def _minutes(limit: str) -> int | None:
    """Return a time limit as `sinfo` writes it in whole minutes; None for none."""
    found = CLOCK.fullmatch(limit.strip())
    if not found:
        return None
    parts = [int(part) for part in found["rest"].split(":")]
    hours, minutes, _ = ([0] * (3 - len(parts)) + parts) if found["days"] is None else parts
    return int(found["days"] or 0) * 1440 + hours * 60 + minutes


def _partitions(profile: SlurmProfile, nodes: list[Nodes]) -> Iterator[Finding]:
    names = list(dict.fromkeys(node.partition for node in nodes))
    if profile.partition and not set(profile.partition.split(",")) & set(names):
        yield "missing", "partition", f"{profile.partition} is not one of {', '.join(names)}"
        return
    wanted = profile.partition.split(",") if profile.partition else names
    mine = [node for node in nodes if node.partition in wanted]
    yield "ok", "partition", f"{', '.join(wanted)}: {len(mine)} kinds of nodes"
    for kind, resources in profile.all_resources().items():
        if mine and not any(_fits(resources, node) for node in mine):
            yield (
                "missing",
                f"resources.{kind}",
                f"no node of {', '.join(wanted)} has what is asked for ({_asked(resources)})",
            )


def _fits(wanted: Resources, node: Nodes) -> bool:
    memory = int(wanted.memory[:-1]) * UNITS[wanted.memory[-1]] if wanted.memory else 0
    return (
        wanted.cpus <= node.cpus
        and wanted.gpus <= node.gpus
        and memory <= node.memory_mib
        and (node.minutes is None or wanted.minutes <= node.minutes)
    )


def _asked(wanted: Resources) -> str:
    memory = f", {wanted.memory}" if wanted.memory else ""
    return f"{wanted.cpus} cpus, {wanted.gpus} gpus{memory}, {wanted.minutes} minutes"
