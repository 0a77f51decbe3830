"""Compares a profile with its Kubernetes cluster, for `pipeline doctor --on PROFILE`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from orchestration.engines.base import Finding
from orchestration.engines.kubernetes import Kubernetes
from orchestration.errors import EngineError
from orchestration.profile import KubernetesProfile, Resources
from pipeline.common.documents import parse

JOBSETS = "jobsets.jobset.x-k8s.io"
# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|[kMGTPE]|[KMGTPE]i)?")
FACTORS = {"m": 1e-3, "": 1.0, "k": 1e3}
FACTORS |= {name: 1000.0**power for power, name in enumerate("MGTPE", start=2)}
FACTORS |= {f"{name}i": 1024.0**power for power, name in enumerate("KMGTPE", start=1)}


def findings(profile: KubernetesProfile) -> Iterator[Finding]:
    """Yield what is right and wrong with the cluster for a plan of `profile`."""
    if profile.context is None:
        yield "note", "context", "none: the manifest is written, and you apply it"
        return
    cluster = Kubernetes(profile)
    try:
        groups = cluster.kubectl("api-resources", "--api-group=jobset.x-k8s.io", "--output=name")
    except EngineError as error:
        yield "missing", "kubernetes", str(error)
        return
    if JOBSETS not in groups.split():
        yield "missing", "jobset", "its controller is not installed: https://jobset.sigs.k8s.io"
    else:
        yield "ok", "jobset", JOBSETS
        yield from _there(
            cluster, "rights", f"may create {JOBSETS}", "auth", "can-i", "create", JOBSETS
        )
    yield from _volume(cluster, profile)
    if profile.secret:
        words = ("get", "secret", profile.secret, "--output=name")
        yield from _there(cluster, "secret", profile.secret, *words)
    yield from _nodes(cluster, profile)


def _there(cluster: Kubernetes, what: str, detail: str, *words: str) -> Iterator[Finding]:
    """Yield that `what` is ok if kubectl succeeds with `words`, else kubectl's error."""
    try:
        cluster.kubectl(*words)
    except EngineError as error:
        yield "missing", what, f"{detail}: {error}"
    else:
        yield "ok", what, detail


def _volume(cluster: Kubernetes, profile: KubernetesProfile) -> Iterator[Finding]:
    try:
        found = parse(cluster.kubectl("get", "pvc", profile.claim, "--output=json"))
    except (EngineError, ValueError) as error:
        yield "missing", "claim", f"{profile.claim}: {error}"
        return
    modes = found.get("spec", {}).get("accessModes", [])
    if "ReadWriteMany" in modes:
        yield "ok", "claim", f"{profile.claim}, {', '.join(modes)}"
    else:
        yield (
            "missing",
            "claim",
            f"{profile.claim} is not ReadWriteMany ({', '.join(modes)}): jobs on several nodes"
            " can't share it",
        )


def _nodes(cluster: Kubernetes, profile: KubernetesProfile) -> Iterator[Finding]:
    wanted = ",".join(f"{name}={value}" for name, value in profile.node_selector.items())
    words = ["get", "nodes", "--output=json", *([f"--selector={wanted}"] if wanted else [])]
    try:
        listed = parse(cluster.kubectl(*words))["items"]
        nodes = [node["status"]["allocatable"] for node in listed]
    except (EngineError, ValueError, KeyError, TypeError) as error:
        yield "note", "nodes", f"what they have can't be seen from here: {error}"
        return
    yield "ok", "nodes", f"{len(nodes)}{f' with {wanted}' if wanted else ''}"
    for kind, resources in profile.all_resources().items():
        if not any(_fits(resources, node, profile.gpu_resource) for node in nodes):
            yield "missing", f"resources.{kind}", "no node has what is asked for"


def _fits(wanted: Resources, node: Mapping[str, Any], gpus: str) -> bool:
    asked = {"cpu": str(wanted.cpus), gpus: str(wanted.gpus)}
    if wanted.memory:
        asked["memory"] = f"{wanted.memory}i"
    return all(amount(value) <= amount(str(node.get(name, 0))) for name, value in asked.items())


def amount(quantity: str) -> float:
    """Return a quantity of Kubernetes (63500m, 64, 256Gi) as a number; 0 if it is none."""
    found = QUANTITY.fullmatch(quantity)
    return float(found[1]) * FACTORS[found[2] or ""] if found else 0.0
