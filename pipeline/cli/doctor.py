"""`pipeline doctor`: check this machine for what is missing and for launches that would fail."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import echo

if TYPE_CHECKING:
    from packaging.requirements import Requirement

from pipeline.common.machine import usable_cores

PROJECT = "cca-pipeline"
# What each optional package is for.
EXTRAS = {
    "formats": "HEIC and JPEG XL pictures",
    "optimizers": "the optimizers soap and muon",
    "peers": "VVC in reports",
    "s3": "shards on s3://",
    "ray": "jobs on a Ray cluster",
    "turbo": "decoding only the crop of a JPEG (a system's libturbojpeg 3 works too), faster PNGs",
}
PROGRAMS = {
    "sbatch": "schedule on Slurm",
    "kubectl": "apply Kubernetes manifests",
    "git": "note the commit in runs",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's answer; `state` is ok, missing, optional or note."""

    state: str
    what: str
    detail: str


def add_to(app: typer.Typer) -> None:
    """Add `doctor` to `app`."""

    @app.command()
    def doctor(
        on: Annotated[
            Path | None,
            typer.Option(metavar="PROFILE.yaml", help="Check the cluster of this profile as well."),
        ] = None,
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document."),
    ) -> None:
        """Print versions, devices, missing packages, and launches that go wrong on this machine.

        With --on, also check that the cluster has what the profile asks for (on Slurm: partitions,
        limits and nodes). Exits with 1 if something necessary is missing.

        Example: pipeline doctor
        """
        findings = [*_packages(), *_programs(), *_devices()]
        findings += _cluster(on) if on else []
        if as_json:
            echo(json.dumps([asdict(finding) for finding in findings]))
        else:
            width = max(len(finding.what) for finding in findings)
            for finding in findings:
                echo(f"{finding.state:>8}  {finding.what:<{width}}  {finding.detail}")
        if any(finding.state == "missing" for finding in findings):
            raise typer.Exit(1)


def _cluster(path: Path) -> Iterator[Finding]:
    from orchestration.load import load_profile
    from orchestration.sites import findings
    from recipes.config.bundled import shipped

    for state, what, detail in findings(load_profile(shipped(path))):
        yield Finding(state, what, detail)


def _packages() -> Iterator[Finding]:
    """Compare what is installed with what the project's own metadata asks for."""
    from importlib import metadata

    from packaging.requirements import Requirement

    yield Finding("ok", "python", platform.python_version())
    try:
        version, asked = metadata.version(PROJECT), metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        yield Finding("missing", PROJECT, "not installed: pip install -e . in the checkout")
        return
    yield Finding("ok", PROJECT, f"{version}, in {Path(__file__).parents[2]}")
    requirements = list(map(Requirement, asked))
    for needed in filter(_applies, requirements):
        yield _package(needed, "missing", f"pip install '{needed.name}{needed.specifier}'")
    for extra, use in EXTRAS.items():
        for wanted in requirements:
            # An extra that includes another one names the project itself.
            if wanted.name != PROJECT and _applies(wanted, extra) and not _applies(wanted):
                yield _package(wanted, "optional", f"{use}: pip install '{PROJECT}[{extra}]'")


def _applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement, otherwise: str, advice: str) -> Finding:
    from importlib import metadata

    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(otherwise, requirement.name, advice)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding("ok", requirement.name, version)
    return Finding(otherwise, requirement.name, f"{version} is not supported: {advice}")


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        return
    count = torch.cuda.device_count()
    for index in range(count):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield Finding(
            "ok", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
        )
    yield Finding("ok", "cpu", f"{usable_cores()} cores, {torch.get_num_threads()} torch threads")
    if not count and shutil.which("nvidia-smi"):
        yield Finding(
            "missing", "cuda", "there is an NVIDIA driver, but this torch has no CUDA: make setup"
        )
    yield _precision(count)
    yield from launches(os.environ, count)


def _precision(gpus: int) -> Finding:
    """Return the precision that `speed.precision: auto` chooses here, and why."""
    import torch

    if gpus:
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        chosen, why = ("bf16", "this GPU has it") if bf16 else ("fp32", "this GPU has no bf16")
    else:
        from recipes.training.deciding import WORTH, gain

        ratio = gain()
        chosen, why = "bf16" if ratio >= WORTH else "fp32", f"bf16 is {ratio:.2f} times as fast"
    return Finding("ok", "precision", f"speed.precision=auto takes {chosen}: {why}")


def _programs() -> Iterator[Finding]:
    for program, use in PROGRAMS.items():
        path = shutil.which(program)
        yield Finding("ok" if path else "optional", program, path or f"needed only to {use}")
    store = "MLFLOW_TRACKING_URI" if "MLFLOW_TRACKING_URI" in os.environ else "mlflow.db here"
    yield Finding("note", "tracking", store)


def launches(environment: Mapping[str, str], gpus: int) -> Iterator[Finding]:
    """Yield the ways of launching that fail on this machine without an error."""
    from recipes.launching.pitfalls import pitfalls

    for what, detail in pitfalls(environment, gpus):
        yield Finding("note", what, detail)
