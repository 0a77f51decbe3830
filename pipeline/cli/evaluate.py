"""`pipeline evaluate`: models measured on pictures, beside classical codecs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.output import echo

if TYPE_CHECKING:
    from pipeline.evaluation import ModelSpec, Report

NAMED = 10  # skipped files that a message names
PEERS = "jpeg,jpeg2000,webp,heic,avif,jxl,vvc"


def add_to(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command("evaluate")(evaluate)


def evaluate(
    data: Annotated[Path, typer.Option(help="A folder of pictures, searched recursively.")],
    out: Annotated[
        Path, typer.Option(help="The folder to write; an earlier evaluation is replaced.")
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="A model's file or folder, runs:/ID, models:/NAME/VERSION or models:/NAME@ALIAS. "
            "Default: box, the model that comes with the package.",
        ),
    ] = None,
    peers: Annotated[
        str,
        typer.Option(help="Classical codecs to compare with, separated by commas; '' for none."),
    ] = PEERS,
    rates: Annotated[
        str | None,
        typer.Option(
            help="Rates to measure, separated by commas, such as 0,0.5,1, for models with several. "
            "Default: the rates of their training."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="The device: auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Classical codecs to run at once. Default: as many as cores and memory allow.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="A folder that keeps the classical codecs' results for later evaluations."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace --out, whatever it holds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure models on pictures, compare them with classical codecs, and write a report.

    The report has sizes of real files, PSNR, MS-SSIM, BD-rates, times, and crops to compare.

    Example: pipeline evaluate out/mse/w0.85 models:/cca@champion --data kodak --out report
    """
    from pipeline.codec import box
    from pipeline.common import pictures as files
    from pipeline.common.progress import progress
    from pipeline.common.scratch import cache_folder
    from pipeline.evaluation import evaluate as run
    from pipeline.evaluation import find_pictures
    from recipes.config.bundled import shipped

    place = shipped(data)
    pictures = find_pictures(place)
    others = files.find_pictures(place)[1] if place.is_dir() else []
    specs = [_spec(model) for model in models or [box.NAME]]
    chosen = None if rates is None else _numbers(rates)
    names = [name.strip() for name in peers.split(",") if name.strip()]
    with progress("Evaluating", unit="steps") as report:
        result = run(
            specs, pictures, out, names, report,
            device=device, cache=cache or cache_folder("peers"), workers=workers, rates=chosen,
            force=force,
        )  # fmt: skip
    if others:
        listed = ", ".join(file.name for file in others[:NAMED])
        listed += ", ..." if len(others) > NAMED else ""
        echo(f"skipped {len(others)} that are no pictures, or hidden: {listed}", err=True)
    echo(json.dumps(_summary(result, out), indent=1) if as_json else _text(result, out))


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text} is not a list of rates: write it like 0,0.5,1") from None


def _spec(model: str) -> ModelSpec:
    from pipeline.codec import box
    from pipeline.evaluation import ModelSpec

    if box.is_meant(model):
        return ModelSpec(box.NAME, box.box_model())
    path = Path(model)
    if path.exists():
        return ModelSpec(_name(path), path)
    from pipeline.tracking import resolve_model

    return ModelSpec(model, resolve_model(model))


def _name(path: Path) -> str:
    """Return a short, distinct name for a model's path: out/mse/w0.85 becomes mse/w0.85."""
    folder = path.resolve()
    if folder.is_file() and folder.name == "model.safetensors":
        folder = folder.parent
    return "/".join((folder.parent.name, folder.stem if folder.is_file() else folder.name))


def _summary(report: Report, out: Path) -> dict[str, Any]:
    """Return results.json without its pictures, and the paths of the files written."""
    data = report.to_dict()
    for model in data["models"]:
        del model["pictures"]
    for peer in data["peers"].values():
        for point in peer["points"]:
            del point["pictures"]
    data["pictures"] = len(data["pictures"])
    return data | {"report": str(out / "report.html"), "results": str(out / "results.json")}


def _text(report: Report, out: Path) -> str:
    width = max(len(model.name) for model in report.models)
    lines = [f"{'model':{width}}      bpp  PSNR dB  MS-SSIM   encode   decode"]
    for models in report.curves().values():
        for model in models:
            means = model.point.means()
            similarity = means["ms_ssim"]
            lines.append(
                f"{model.name:{width}}  {means['bpp']:7.4f}  {means['psnr']:7.2f}  "
                f"{'      –' if similarity is None else f'{similarity:7.4f}'}  "
                f"{means['encode_seconds']:5.2f} s  {means['decode_seconds']:5.2f} s"
            )
    lines += ["", *report.verdict]
    lines += [f"{name} was left out: {reason}" for name, reason in report.absent.items()]
    return "\n".join([*lines, "", f"Report: {out / 'report.html'}"])
