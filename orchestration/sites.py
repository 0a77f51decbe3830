"""Compares a profile with its machine or cluster, for `pipeline doctor --on PROFILE`."""

from __future__ import annotations

import os
from collections.abc import Iterator

from orchestration.engines.base import Finding
from orchestration.load import ENGINES
from orchestration.profile import Profile


def findings(profile: Profile) -> Iterator[Finding]:
    """Yield what fits and what is missing on the machine or cluster that `profile` describes."""
    yield from ENGINES[profile.engine].site(profile)
    if profile.many_machines and not {"MLFLOW_TRACKING_URI"} & {*os.environ, *profile.env}:
        yield (
            "note",
            "tracking",
            "jobs on several nodes would share an SQLite file: set MLFLOW_TRACKING_URI to a server",
        )
