"""What a cluster has, beside what a profile asks for: `pipeline doctor --on PROFILE`."""

from __future__ import annotations

import os
from collections.abc import Iterator

from orchestration.engines import kubernetes_site, local_site, ray_site, slurm_site
from orchestration.engines.base import Finding
from orchestration.profile import (
    KubernetesProfile,
    LocalProfile,
    Profile,
    RayProfile,
    SlurmProfile,
)


def findings(profile: Profile) -> Iterator[Finding]:
    """Yield what is right and wrong with the place that `profile` describes."""
    if isinstance(profile, SlurmProfile):
        yield from slurm_site.findings(profile)
    elif isinstance(profile, KubernetesProfile):
        yield from kubernetes_site.findings(profile)
    elif isinstance(profile, RayProfile):
        yield from ray_site.findings(profile)
    elif isinstance(profile, LocalProfile):
        yield from local_site.findings(profile)
    alone = isinstance(profile, LocalProfile)
    if not alone and not {"MLFLOW_TRACKING_URI"} & {*os.environ, *profile.env}:
        yield (
            "note",
            "tracking",
            "jobs on several nodes would share an SQLite file: set MLFLOW_TRACKING_URI to a server",
        )
