"""`pipeline compress`, `decompress` and `import`: pictures to files and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.codec import CCAModel

MODEL_HELP = "A file or folder of a model, runs:/ID, models:/NAME/VERSION or models:/NAME@ALIAS."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
Device = Annotated[str, typer.Option(help="Where the networks run: cpu, cuda, cuda:1, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add this room's commands to `app`."""
    app.command()(compress)
    app.command()(decompress)
    app.command("import")(import_published)


def compress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A picture.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The .cca file to write.")],
    model: Model,
    profile: Annotated[bool, typer.Option(help="Keep the picture's ICC colour profile.")] = True,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode the stream before reporting success.")
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compress a picture to a .cca file.

    Example: pipeline compress photo.png photo.cca --model models:/cca@champion
    """
    from pipeline.codec.files import compress_file
    from pipeline.codec.picture import read_picture

    picture = read_picture(source, profile=profile)
    result = compress_file(_load(model, device), picture, target, verify=verify)
    if as_json:
        typer.echo(json.dumps({"file": str(target), **result}))
    else:
        typer.echo(
            f"{target}: {result['bytes']} bytes, {result['bpp']:.4f} bits per pixel"
            f"{', verified' if verify else ''}"
        )


def decompress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .cca file.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The picture to write, as .png.")],
    model: Annotated[
        str | None,
        typer.Option(help=f"{MODEL_HELP} Default: found by the fingerprint in the file."),
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Decompress a .cca file to a picture.

    Example: pipeline decompress photo.cca photo.png --model models:/cca@champion
    """
    from pipeline.codec.files import decompress_file, read_file

    data = read_file(source)
    loaded = _load(model, device) if model is not None else _find(data, source, device)
    size = decompress_file(loaded, data, target)
    if as_json:
        typer.echo(json.dumps({"file": str(target), "width": size[0], "height": size[1]}))
    else:
        typer.echo(f"{target}: {size[0]} x {size[1]} pixels")


def import_published(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="PUBLISHED", help="A checkpoint of the paper's authors.")
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file or folder to write.")],
    as_json: Json = False,
) -> None:
    """Convert a checkpoint of the paper's authors to a model of this project.

    Example: pipeline import cca-lambda-0.3.pth.tar --out models/cca-0.3
    """
    from pipeline.codec import save_model
    from pipeline.codec.published import read_published

    published = read_published(checkpoint)
    info = {"name": checkpoint.name, "stage": "import"}
    file = save_model(published.model, out, info, published.auxiliary)
    count = sum(parameter.numel() for parameter in published.model.parameters())
    found = {"file": str(file), "parameters": count, "auxiliary": published.auxiliary is not None}
    if as_json:
        typer.echo(json.dumps(found))
    else:
        with_auxiliary = "with" if found["auxiliary"] else "without"
        typer.echo(f"{file}: {count} parameters, {with_auxiliary} the auxiliary model")


def _load(model: str, device: str) -> CCAModel:
    """Load any MODEL; a path that exists needs no tracking."""
    from pipeline.codec import load_model

    if Path(model).exists():
        return load_model(model, device=device)
    from pipeline.tracking import resolve_model

    return load_model(resolve_model(model), device=device)


def _find(data: bytes, source: Path, device: str) -> CCAModel:
    """Load the model that the stream names, from beside it or the working folder."""
    from pipeline.codec import load_model
    from pipeline.codec.files import find_model

    return load_model(find_model(data, [source.resolve().parent, Path.cwd()]), device=device)
