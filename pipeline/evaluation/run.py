"""Runs an evaluation: from models and pictures to a folder with results, curves and a report."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipeline.common.atomic import sweep, writing_folder
from pipeline.common.devices import pick_device
from pipeline.common.machine import usable_cores
from pipeline.common.printable import cell
from pipeline.common.progress import Progress
from pipeline.evaluation.classical import Cache, Runner, Span
from pipeline.evaluation.compare import compare
from pipeline.evaluation.errors import EvaluationError
from pipeline.evaluation.learned import (
    ModelLoader,
    ModelSpec,
    at_rates,
    folder_name,
    measure_model,
    tell_curves_apart,
)
from pipeline.evaluation.peers import PEERS, choose_peers
from pipeline.evaluation.pictures import EvaluatedPicture, read_sources
from pipeline.evaluation.plots import draw_curves
from pipeline.evaluation.progress import Meter
from pipeline.evaluation.published import is_kodak, published_curves
from pipeline.evaluation.results import ModelResult, PeerResult, Report
from pipeline.evaluation.scenes import Scene, make_scenes
from pipeline.evaluation.storage import MARK, STREAMS, check_folder
from pipeline.evaluation.verdict import verdict
from pipeline.evaluation.webpage import render


def evaluate(
    models: Sequence[ModelSpec],
    pictures: Sequence[Path],
    out: Path,
    peers: Sequence[str] = tuple(PEERS),
    progress: Progress | None = None,
    *,
    device: str = "auto",
    cache: Path | None = None,
    workers: int | None = None,
    rates: Sequence[float] | None = None,
    force: bool = False,
) -> Report:
    """Measure `models` and the classical codecs `peers` on `pictures`, and write a report to `out`.

    `out` gets results.json, results.csv, rd-curve.png and .svg, report.html and every stream under
    streams/, whole or not at all; an earlier evaluation there is replaced. `cache`: a folder that
    keeps the results of classical codecs for later calls. `workers`: how many codecs run at once.
    `rates`: the rates at which models with several are measured; default: those of their training.
    `force`: replace `out` even if it holds other things than an evaluation.
    Raises EvaluationError on bad input, MeasurementError if a model fails.
    """
    if not models:
        raise EvaluationError("no model to evaluate: name at least one")
    if not pictures:
        raise EvaluationError("no pictures to evaluate on: name at least one")
    check_folder(out, [*pictures, *(spec.path for spec in models)], force)
    target = pick_device(device)
    specs = unique_specs(at_rates(unique_specs(models), rates))
    here, absent = choose_peers(list(peers))
    sources = read_sources(pictures)
    meter = Meter(progress)
    # The report is one step more.
    meter.expect(len(specs) * len(sources) + 1)
    sweep(out.resolve().parent)  # folders that killed evaluations left, of any name
    with writing_folder(out) as folder:
        streams, loader = folder / STREAMS, ModelLoader(target)
        measured = tell_curves_apart(
            [
                measure_model(spec, sources, streams / folder_name(spec.name), loader, meter)
                for spec in specs
            ]
        )
        runner = Runner(Cache(cache), workers, meter)
        results = runner.run(here, sources, span_of(measured))
        report = _report(measured, results, absent | runner.failed, sources, target)
        scenes = make_scenes(report, specs, sources, streams, here, loader)
        _write(report, scenes, folder)
    meter.step("report")
    return report


def unique_specs(models: Sequence[ModelSpec]) -> list[ModelSpec]:
    """Return the specs; two with the same name are refused, as they could not be told apart."""
    seen: set[str] = set()
    for spec in models:
        if folder_name(spec.name) in seen:
            raise EvaluationError(f"two models are called {spec.name}: give each its own name")
        seen.add(folder_name(spec.name))
    return list(models)


def span_of(models: Sequence[ModelResult]) -> Span:
    """Return the range of rate and PSNR that the models cover, means over the set."""
    rates = [model.point.mean("bpp") or 0.0 for model in models]
    qualities = [model.point.mean("psnr") or 0.0 for model in models]
    return Span((min(rates), max(rates)), (min(qualities), max(qualities)))


def machine(device: torch.device) -> dict[str, Any]:
    """Return what readers need to judge the times: processor, threads, device, versions."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _report(
    models: tuple[ModelResult, ...],
    peers: Sequence[PeerResult],
    absent: dict[str, str],
    sources: Sequence[EvaluatedPicture],
    device: torch.device,
) -> Report:
    bare = Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        pictures=tuple(
            {"name": s.name, "width": s.width, "height": s.height, "sha256": s.digest}
            for s in sources
        ),
        models=models,
        peers=tuple(peers),
        absent=absent,
        comparisons=(),
        machine=machine(device),
    )
    published = published_curves() if is_kodak(sources) else {}
    compared = replace(bare, comparisons=compare(bare.curves(), peers, published))
    return replace(compared, verdict=verdict(compared))


def table(report: Report) -> str:
    """Return the content of results.csv: a row for each picture, codec and setting."""
    text = io.StringIO()
    rows = report.rows()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: cell(v) if isinstance(v, str) else v for key, v in row.items()})
    return text.getvalue()


def _write(report: Report, scenes: Sequence[Scene], folder: Path) -> None:
    """Write the report's files; results.json, which marks the folder as complete, comes last."""
    (folder / "results.csv").write_bytes(table(report).encode())
    for suffix in ("png", "svg"):
        (folder / f"rd-curve.{suffix}").write_bytes(draw_curves(report, suffix))
    (folder / "report.html").write_bytes(render(report, scenes).encode())
    content = json.dumps(report.to_dict(), indent=1, allow_nan=False)
    (folder / MARK).write_bytes(content.encode())
