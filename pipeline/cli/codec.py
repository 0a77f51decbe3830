"""`pipeline compress`, `decompress` and `import`: pictures to files and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.output import echo
from pipeline.cli.places import check_stream_name, is_picture_file, is_stream_file, places
from pipeline.common.sizes import parse_size

if TYPE_CHECKING:
    from pipeline.cli.coding import Shown

IMPORTED = "import"  # the stage that an imported model's file names
MODEL_HELP = (
    "A model's file or folder, runs:/ID, models:/NAME/VERSION, models:/NAME@ALIAS, or box, the "
    "model that comes with the package."
)
Device = Annotated[str, typer.Option(help="The device for the networks: cpu, cuda, cuda:1, ...")]
Memory = Annotated[
    str,
    typer.Option(
        help="Memory that the networks may use, such as 500MB or 4GB. Less memory means smaller "
        "tiles."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Number of files to process at once, each with up to --max-memory. Default: as many "
        "as cores and memory allow; on a GPU two, if its memory allows.",
        min=1,
    ),
]
OutDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The folder to write the results to."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Also replace files that this command did not write.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.command()(compress)
    app.command()(decompress)
    app.command("import")(import_published)


def compress(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IN... [OUT]",
            help="Pictures, or a folder of them, then the .cca file or folder to write. Without "
            "OUT, photo.jpg becomes photo.cca. - is standard input or output.",
        ),
    ],
    out_dir: OutDir = None,
    model: Annotated[
        str, typer.Option(help=f"{MODEL_HELP} Default: box.", show_default=False)
    ] = "box",
    quality: Annotated[
        str | None,
        typer.Option(
            metavar="Q",
            help="From 0 (smallest file) to 100 (best picture), similar to a JPEG's, or lowest, "
            "low, medium, high or highest. Default: medium.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Make the best picture in a file of at most this size, such as 100KB."),
    ] = None,
    bpp: Annotated[
        float | None,
        typer.Option(help="Make the best picture in at most this number of bits per pixel."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            help="For a model with N rates: any number from 0 (fewest bits) to N - 1 (most bits)."
        ),
    ] = None,
    profile: Annotated[bool, typer.Option(help="Keep the picture's ICC colour profile.")] = True,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode each stream before writing it.")
    ] = False,
    force: Force = False,
    max_memory: Memory = "4GB",
    workers: Workers = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compress pictures to .cca files.

    Several pictures, or those of a folder, are compressed in parallel. Running the same command
    again compresses only the missing ones.

    Example: pipeline compress photo.jpg --quality high
    """
    from pipeline.cli import coding

    asked = places(words, out_dir, is_picture_file)
    ask = coding.Ask(quality, size, bpp, rate)
    ask.check()
    if asked.target is not None and not force:
        check_stream_name(asked.target)
    options = coding.Options(parse_size(max_memory, "--max-memory"), workers, device, force)
    shown = coding.compress(asked, options, model, ask, profile, verify)
    _show(as_json, shown)


def decompress(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IN... [OUT]",
            help=".cca files, or a folder of them, then the picture or folder to write. Without "
            "OUT, photo.cca becomes photo.png. - is standard input or output.",
        ),
    ],
    out_dir: OutDir = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"{MODEL_HELP} Default: the model whose fingerprint is in the file."),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Decode the part that a truncated file still holds.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Write 16-bit grey if the source was 16-bit grey.")
    ] = False,
    force: Force = False,
    max_memory: Memory = "4GB",
    workers: Workers = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Decompress .cca files to pictures.

    The command finds the model by its fingerprint: in the package, beside the file, in the working
    folder, or among the models fetched from a registry.

    Example: pipeline decompress photo.cca photo.png
    """
    from pipeline.cli import coding

    asked = places(words, out_dir, is_stream_file)
    if preview and (asked.whole_folder or len(asked.sources) > 1):
        raise typer.BadParameter("--preview is for one file")
    options = coding.Options(parse_size(max_memory, "--max-memory"), workers, device, force)
    shown = coding.decompress(asked, options, model, preview, deep)
    _show(as_json, shown)


def import_published(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="PUBLISHED", help="A checkpoint of the paper's authors.")
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file or folder to write.")],
    force: Force = False,
    architecture: Annotated[
        str | None, typer.Option(help="The checkpoint's architecture. Default: cca.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint published by the paper's authors to a model of this project.

    Example: pipeline import cca-lambda-0.3.pth.tar --out models/cca-0.3
    """
    from pipeline.codec import CodecError, ModelInfo, architectures, save_model
    from pipeline.codec.stored import target_file
    from pipeline.common.targets import check_target

    kind = architectures.load(architecture or architectures.DEFAULT)
    target = target_file(out)
    check_target(
        target, "import", lambda file: _is_import_of(file, checkpoint), sources=[checkpoint],
        force=force, make_folder=True,
    )  # fmt: skip
    if kind.read_published is None:
        raise CodecError(f"there are no published checkpoints of {kind.name} to import")
    model, auxiliary = kind.read_published(checkpoint)
    file = save_model(model, out, ModelInfo(name=checkpoint.name, stage=IMPORTED), auxiliary)
    count = sum(parameter.numel() for parameter in model.parameters())
    extent = "without" if auxiliary is None else "with"
    result = {"file": str(file), "parameters": count, "auxiliary": auxiliary is not None}
    sentence = f"{file}: {count} parameters, {extent} the auxiliary model"
    echo(json.dumps(result) if as_json else sentence)


def _is_import_of(file: Path, checkpoint: Path) -> bool:
    """Tell whether the model in `file` was imported from a checkpoint of this name."""
    from pipeline.codec import CodecError
    from pipeline.codec.stored import load_info

    try:
        info = load_info(file)
    except CodecError:
        return False
    return (info.stage, info.name) == (IMPORTED, checkpoint.name)


def _show(as_json: bool, shown: Shown) -> None:
    # Where standard output is the file itself, messages go to standard error.
    echo(json.dumps(shown.result) if as_json else shown.sentence, err=shown.aside)
