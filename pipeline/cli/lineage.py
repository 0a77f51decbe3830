"""A model's lineage as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.tracking import Lineage, Version
    from pipeline.tracking.lineage import Data, StageRun

SHORT = 12


def lines_of(lineage: Lineage) -> Iterator[str]:
    """Yield a line for the version, for each run back to the first, and for its training data."""
    yield from _version(lineage.version) if lineage.version else [lineage.model]
    for depth, step in enumerate(lineage.steps):
        yield from ("  " * (depth + 1) + line for line in _step(step))
    if lineage.gap:
        yield "  " * (len(lineage.steps) + 1) + f"the trail ends here: {lineage.gap}"


def _version(version: Version) -> Iterator[str]:
    aliases = "".join(f" @{alias}" for alias in version.aliases)
    yield f"{version.uri}{aliases}, fingerprint {version.fingerprint[:SHORT]}"
    measured = [
        f"{value:.4g} {unit}"
        for value, unit in ((version.bpp, "bpp"), (version.psnr, "dB PSNR"))
        if value is not None
    ]
    if measured:
        yield f"  measured: {', '.join(measured)} on {version.measured_on or 'an unnamed set'}"


def _step(step: StageRun) -> Iterator[str]:
    tags = step.tags
    yield f"run {step.run_id}: {step.name}, {step.status.lower()}, started {step.started}"
    facts = {
        "stage": tags.get("stage"),
        "recipe": _named(tags.get("recipe"), tags.get("recipe_digest")),
        "overrides": tags.get("overrides"),
        "changed since": tags.get("changed_settings"),
        "code": _code(tags),
        "machine": _machine(tags),
        "slurm job": tags.get("slurm.job_id"),
    }
    for name, value in facts.items():
        if value:
            yield f"  {name}: {value}"
    for data in step.data:
        yield from (f"  {line}" for line in _data(data))


def _data(data: Data) -> Iterator[str]:
    yield f"trained on: {data.name} in {data.source}, manifest {data.digest[:SHORT]}"
    if data.manifest is None:
        return
    manifest: dict[str, Any] = data.manifest
    counts = f"{manifest.get('samples')} of {manifest.get('listed')} pictures"
    digest = str(manifest.get("source_digest"))[:SHORT]
    yield f"  {len(manifest.get('shards', []))} shards, {counts}, seed {manifest.get('seed')}"
    sources = manifest.get("created_with", {}).get("sources", [])
    yield f"  from: {', '.join(map(str, sources)) or 'an unnamed source'}, listing {digest}"


def _named(name: str | None, digest: str | None) -> str | None:
    return f"{name} ({digest[:SHORT]})" if name and digest else name or digest


def _code(tags: dict[str, str]) -> str | None:
    commit = tags.get("mlflow.source.git.commit") or tags.get("git_commit")
    if not commit:
        return None
    changed = tags.get("git.changed", "0")
    return commit[:SHORT] + (f", {changed} files changed (surroundings/)" if changed != "0" else "")


def _machine(tags: dict[str, str]) -> str | None:
    known = [tags[key] for key in ("host", "cpu", "gpu") if tags.get(key, "none") != "none"]
    return ", ".join(known) or None
