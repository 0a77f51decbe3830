"""Compares a profile with this machine, for `pipeline doctor --on PROFILE`."""

from __future__ import annotations

from collections.abc import Iterator

from orchestration.engines.base import Finding
from orchestration.profile import LocalProfile
from pipeline.common.machine import usable_cores


def findings(profile: LocalProfile) -> Iterator[Finding]:
    """Yield how much of the machine there is to share out, and which jobs ask for more."""
    cores = usable_cores()
    shared = profile.cpus or cores
    state = "ok" if shared <= cores else "note"
    yield state, "cores", f"{shared} to share out, of {cores} that may be used here"
    for kind, resources in profile.all_resources().items():
        if resources.cpus > shared:
            yield "note", f"resources.{kind}", f"asks for {resources.cpus} cpus and runs alone"
