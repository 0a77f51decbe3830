"""`pipeline compress`, `decompress` and `import`: pictures to files and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.common.progress import progress
from pipeline.common.sizes import parse_size

if TYPE_CHECKING:
    from pipeline.codec import Model as CodecModel
    from pipeline.codec.folders import Folder, Task

MODEL_HELP = "A model's file or folder, runs:/ID, models:/NAME/VERSION or models:/NAME@ALIAS."
Model = Annotated[str, typer.Option(help=MODEL_HELP)]
Device = Annotated[str, typer.Option(help="Where the networks run: cpu, cuda, cuda:1, ...")]
Memory = Annotated[
    str,
    typer.Option(
        help="Memory that the networks may use, such as 500MB or 4GB; less means smaller tiles."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Files of a folder to process at once, each with up to --max-memory. Default: as many "
        "as cores and memory allow; on a GPU, one.",
        min=1,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def add_to(app: typer.Typer) -> None:
    """Add this room's commands to `app`."""
    app.command()(compress)
    app.command()(decompress)
    app.command("import")(import_published)


def compress(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A picture, or a folder of pictures.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The .cca file or folder to write.")
    ],
    model: Model,
    rate: Annotated[
        float | None,
        typer.Option(
            help="For a model with N rates: any number from 0 (fewest bits) to N - 1 (most bits). "
            "Default: the middle."
        ),
    ] = None,
    profile: Annotated[bool, typer.Option(help="Keep the picture's ICC colour profile.")] = True,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode each stream before writing it.")
    ] = False,
    max_memory: Memory = "4GB",
    workers: Workers = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compress a picture, or every picture in a folder, to .cca files.

    The pictures of a folder are compressed in parallel. Running the same command again
    compresses only those that are missing.

    Example: pipeline compress photo.png photo.cca --model models:/cca@champion --rate 2.5
    """
    from pipeline.codec.files import compress_file
    from pipeline.codec.picture import read_picture

    memory = parse_size(max_memory, "--max-memory")
    if source.is_dir():
        from pipeline.codec.folders import compress_folder

        task = _task(model, target, memory, workers, device)
        with progress("Compressing", "pictures") as report:
            done = compress_folder(source, task, profile, verify, rate, report)
        _show_folder(as_json, target, done)
        return
    picture = read_picture(source, profile=profile)
    loaded = _load(model, device)
    with _tiles("Compressing") as tiles:
        result = compress_file(loaded, picture, target, verify, memory, rate, tiles)
    _show(
        as_json,
        {"file": str(target), **result},
        f"{target}: {result['bytes']} bytes, {result['bpp']:.4f} bits per pixel"
        f"{', verified' if verify else ''}",
    )


def decompress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A .cca file, or a folder of them.")],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="The .png file or folder to write.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help=f"{MODEL_HELP} Default: the model whose fingerprint is in the file."),
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Decode what a truncated file still holds.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Write 16-bit grey if the source was 16-bit grey.")
    ] = False,
    max_memory: Memory = "4GB",
    workers: Workers = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Decompress a .cca file, or every one in a folder, to pictures.

    Example: pipeline decompress photo.cca photo.png --model models:/cca@champion
    """
    from pipeline.codec.files import decompress_file, read_file

    memory = parse_size(max_memory, "--max-memory")
    if source.is_dir():
        _decompress_folder(source, target, model, preview, deep, memory, workers, device, as_json)
        return
    data = read_file(source)
    loaded = _load(model, device) if model is not None else None
    with _about(source), _tiles("Decompressing") as tiles:
        loaded = loaded or _find(data, source, device)
        result = decompress_file(loaded, data, target, preview, deep, memory, progress=tiles)
    _show(
        as_json,
        {"file": str(target), **result},
        f"{target}: {result['width']} x {result['height']} pixels"
        f"{'' if result['complete'] else ', a preview: the file is truncated'}",
    )


def import_published(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="PUBLISHED", help="A checkpoint of the paper's authors.")
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file or folder to write.")],
    architecture: Annotated[
        str | None, typer.Option(help="The checkpoint's architecture. Default: cca.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a checkpoint published by the paper's authors to a model of this project.

    Example: pipeline import cca-lambda-0.3.pth.tar --out models/cca-0.3
    """
    from pipeline.codec import CodecError, ModelInfo, architectures, save_model

    made = architectures.load(architecture or architectures.DEFAULT)
    if made.read_published is None:
        raise CodecError(f"nobody published checkpoints of {made.name} that could be imported")
    model, auxiliary = made.read_published(checkpoint)
    file = save_model(model, out, ModelInfo(name=checkpoint.name, stage="import"), auxiliary)
    count = sum(parameter.numel() for parameter in model.parameters())
    beside = "without" if auxiliary is None else "with"
    _show(
        as_json,
        {"file": str(file), "parameters": count, "auxiliary": auxiliary is not None},
        f"{file}: {count} parameters, {beside} the auxiliary model",
    )


def _decompress_folder(
    source: Path,
    target: Path,
    model: str | None,
    preview: bool,
    deep: bool,
    memory: int,
    workers: int | None,
    device: str,
    as_json: bool,
) -> None:
    from pipeline.codec.folders import decompress_folder

    if model is None:
        raise typer.BadParameter("a folder of .cca files needs --model")
    if preview:
        raise typer.BadParameter("--preview is for one file, not for a folder")
    task = _task(model, target, memory, workers, device)
    with progress("Decompressing", "files") as report:
        done = decompress_folder(source, task, deep, report)
    _show_folder(as_json, target, done)


def _task(model: str, target: Path, memory: int, workers: int | None, device: str) -> Task:
    from pipeline.codec.folders import Task
    from pipeline.common.machine import worker_count

    workers = workers or (worker_count(memory) if device == "cpu" else 1)
    return Task(_load(model, device), target, memory, workers)


@contextmanager
def _tiles(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows how many tiles of one picture are done."""
    with progress(title, "tiles") as report:
        yield lambda done, of: report(done, of, "")


def _show_folder(as_json: bool, target: Path, done: Folder) -> None:
    sentence = f"{target}: {done['written']} written, {done['kept']} already there"
    if others := done["passed_over"]:
        shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        sentence += f"; skipped {len(others)} files that are not pictures: {shown}"
    _show(as_json, {"folder": str(target), **done}, sentence)


def _show(as_json: bool, result: dict[str, Any], sentence: str) -> None:
    typer.echo(json.dumps(result) if as_json else sentence)


def _path(model: str) -> Path:
    """Return the file or folder of any MODEL; a path that exists needs no tracking."""
    if Path(model).exists():
        return Path(model)
    from pipeline.tracking import resolve_model

    return resolve_model(model)


def _load(model: str, device: str) -> CodecModel:
    from pipeline.codec import load_model

    return load_model(_path(model), device=device)


@contextmanager
def _about(file: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with its contents."""
    from pipeline.codec import CodecError

    try:
        yield
    except CodecError as error:
        raise CodecError(f"{file}: {error}") from error


def _find(data: bytes, source: Path, device: str) -> CodecModel:
    """Load the model that the stream names, from beside it or the working folder."""
    from pipeline.codec import load_model
    from pipeline.codec.files import find_model

    return load_model(find_model(data, [source.resolve().parent, Path.cwd()]), device=device)
