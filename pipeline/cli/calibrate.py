"""`pipeline calibrate`: find scales for a model's entropy networks on pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.codec import MODEL_HELP, Force, Json
from pipeline.cli.output import echo

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.codec import Model
    from pipeline.codec.calibrating import Comparison

SIDE = 256  # pixels, height and width of the crops to calibrate on


def add_to(app: typer.Typer) -> None:
    """Add this command to `app`."""
    app.command()(calibrate)


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    data: Annotated[
        Path,
        typer.Option(
            help="A folder of pictures of the kind that the model will code; no test pictures."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The new model: a folder, or a .safetensors file.")],
    pictures: Annotated[
        int, typer.Option(help="Number of pictures to use, evenly spaced in the folder.", min=1)
    ] = 16,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURES", help="Code these with both models, and print the change (minutes)."
        ),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store the weights as float16, if they fit.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a model with faster entropy networks: sums exact in float32 instead of float64.

    The weights stay the same. The new model has its own fingerprint and format version 2, and does
    not decode files of the old model.

    Example: pipeline calibrate runs/mse/w0.85 --data photographs --out models/quick
    """
    from pipeline.codec import calibrating, save_model
    from pipeline.codec.storage import load_model
    from pipeline.codec.stored import target_file
    from pipeline.common.progress import progress
    from pipeline.common.targets import check_target
    from pipeline.evaluation.pictures import find_pictures
    from pipeline.tracking.models import resolve_model
    from recipes.config.bundled import shipped

    source, target = resolve_model(model), target_file(out)
    origin = load_model(source)
    check_target(
        target, "calibrate", lambda file: _is_calibration_of(file, origin),
        sources=[source if source.is_file() else target_file(source)], force=force,
        make_folder=True,
    )  # fmt: skip
    calibrated = load_model(source)
    crops = [_middle(_picture(path)) for path in _chosen(find_pictures(shipped(data)), pictures)]
    with progress("calibrating", "pictures") as report:
        calibrating.calibrate(calibrated, crops, lambda done: report(done, len(crops), ""))
    change: Comparison | None = None
    if compare is not None:
        paths = find_pictures(shipped(compare))
        with progress("comparing", "pictures") as report:
            change = calibrating.compare(
                origin, calibrated, map(_picture, paths), lambda done: report(done, len(paths), "")
            )
    file = save_model(calibrated, target, half=half)
    layers, fingerprint = len(calibrated.scales), calibrated.fingerprint
    result = {"file": str(file), "fingerprint": fingerprint, "layers": layers}
    sentence = f"{file}: {layers} layers with scales, fingerprint {fingerprint[:16]}"
    if change is not None:
        result |= asdict(change) | {"percent": change.percent, "times": change.times}
        sentence += (
            f"; bytes {change.percent:+.3f} %, entropy networks and coding take "
            f"{1 / change.times:.2f} of the CPU time"
        )
    echo(json.dumps(result) if as_json else sentence)


def _chosen(paths: list[Path], most: int) -> list[Path]:
    """Return at most `most` of `paths`, evenly spaced."""
    count = min(len(paths), most)
    return [paths[i * len(paths) // count] for i in range(count)]


def _picture(path: Path) -> Tensor:
    """Return the picture in a file (1, 3, H, W) in [0, 1]."""
    import torch

    from pipeline.evaluation.pictures import read_picture

    return torch.from_numpy(read_picture(path).copy()).permute(2, 0, 1)[None].float() / 255


def _middle(picture: Tensor) -> Tensor:
    """Return the middle of a picture, at most `SIDE` high and wide."""
    top, left = (max(0, (length - SIDE) // 2) for length in picture.shape[2:])
    return picture[:, :, top : top + SIDE, left : left + SIDE].clone()


def _is_calibration_of(file: Path, origin: Model) -> bool:
    """Tell whether the model in `file` has scales, and the weights of `origin`."""
    import torch

    from pipeline.codec import CodecError
    from pipeline.codec.storage import load_model

    try:
        model = load_model(file)
    except CodecError:
        return False
    ours, theirs = model.state_dict(), origin.state_dict()
    same = model.config == origin.config and ours.keys() == theirs.keys()
    return bool(model.scales) and same and all(torch.equal(ours[n], theirs[n]) for n in ours)
