"""`pipeline doctor`: what this machine has, what is missing, and which launches go wrong on it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

import typer

NEEDED = (
    "torch",
    "accelerate",
    "deepspeed",
    "webdataset",
    "datasets",
    "mlflow",
    "pillow",
    "kornia",
    "constriction",
    "simplejpeg",
)
# Package and what is missing without it.
OPTIONAL = {
    "pillow-jxl-plugin": "JPEG XL in reports: pip install 'cca-pipeline[peers]'",
    "pillow-heif": "HEIC in reports: pip install 'cca-pipeline[peers]'",
    "imageio-ffmpeg": "VVC in reports: pip install 'cca-pipeline[peers]'",
    "s3fs": "s3:// shards: pip install 'cca-pipeline[s3]'",
}
PROGRAMS = {"sbatch": "schedule on Slurm", "kubectl": "apply Kubernetes manifests"}


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
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document."),
    ) -> None:
        """Print versions, devices, what is missing, and the launches that go wrong here.

        Exits with 1 when something that every command needs is missing.

        Example:
            pipeline doctor
        """
        findings = [*_packages(), *_device(), *_programs(), *_launches()]
        if as_json:
            typer.echo(json.dumps([asdict(finding) for finding in findings]))
        else:
            width = max(len(finding.what) for finding in findings)
            for one in findings:
                typer.echo(f"{one.state:>8}  {one.what:<{width}}  {one.detail}")
        if any(finding.state == "missing" for finding in findings):
            raise typer.Exit(1)


def _packages() -> Iterator[Finding]:
    yield Finding("ok", "python", platform.python_version())
    for name in NEEDED:
        version = _version(name)
        yield Finding("ok" if version else "missing", name, version or f"pip install {name}")
    for name, without in OPTIONAL.items():
        version = _version(name)
        yield Finding("ok" if version else "optional", name, version or f"without it no {without}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device() -> Iterator[Finding]:
    if _version("torch") is None:
        return
    import torch

    count = torch.cuda.device_count()
    for index in range(count):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield Finding(
            "ok", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
        )
    yield Finding("ok", "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    if not count and shutil.which("nvidia-smi"):
        yield Finding(
            "missing", "cuda", "there is an NVIDIA driver, but this torch has no CUDA: make setup"
        )


def _programs() -> Iterator[Finding]:
    for program, use in PROGRAMS.items():
        path = shutil.which(program)
        yield Finding("ok" if path else "optional", program, path or f"needed only to {use}")


def _launches() -> Iterator[Finding]:
    """Say which ways of launching several processes train apart without a word."""
    if _version("torch") is None:
        return
    import torch

    if torch.cuda.device_count():
        return
    yield Finding(
        "note",
        "accelerate launch",
        "on CPUs `--cpu --num_processes 2` starts one process and `--multi_gpu` alone two that "
        "know nothing of each other: set ACCELERATE_USE_CPU=true and keep --multi_gpu",
    )
    if os.environ.get("ACCELERATE_USE_CPU"):
        yield Finding(
            "note", "deepspeed", "ACCELERATE_USE_CPU is set, which turns DeepSpeed off: unset it"
        )
