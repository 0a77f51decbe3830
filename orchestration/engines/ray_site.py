"""Compares a profile with its Ray cluster, for `pipeline doctor --on PROFILE`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestration.engines.base import Finding
from orchestration.engines.ray_engine import Ray
from orchestration.errors import EngineError
from orchestration.profile import RayProfile, Resources

UNITS = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def findings(profile: RayProfile) -> Iterator[Finding]:
    """Yield what is right and wrong with the cluster for a plan of `profile`."""
    engine = Ray(profile)
    try:
        yield "ok", "cluster", f"Ray {engine.api.version()} at {engine.api.address}"
        nodes = engine.api.nodes()
    except EngineError as error:
        yield "missing", "cluster", str(error)
        return
    try:
        engine.check_version()
    except EngineError as error:
        yield "missing", "ray", str(error)
    yield "ok", "nodes", f"{len(nodes)} (a cluster that grows may have more later)"
    for kind, resources in profile.all_resources().items():
        if not any(_fits(resources, profile, node) for node in nodes):
            yield "note", f"resources.{kind}", "no node that is there now has what is asked for"


def _fits(wanted: Resources, profile: RayProfile, node: Mapping[str, float]) -> bool:
    asked = {"CPU": wanted.cpus, "GPU": wanted.gpus, **profile.ray_resources}
    if wanted.memory:
        asked["memory"] = int(wanted.memory[:-1]) * UNITS[wanted.memory[-1]]
    return all(value <= node.get(name, 0) for name, value in asked.items())
