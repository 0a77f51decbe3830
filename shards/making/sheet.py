"""The contact sheet of `pipeline shard --dry-run --augment`: pictures before and after."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader
from PIL import Image

from pipeline.common.atomic import write_text
from pipeline.common.printable import shown
from pipeline.common.targets import check_target
from shards.augment.operations import Augmenter
from shards.augment.resampling import Pixels
from shards.augment.writing import Result, Writer
from shards.errors import ShardsError
from shards.options import Options
from shards.samples.sample import Ready

SHOWN = 20  # pictures
SIDE = 256  # most pixels a side of a picture on the page
GENERATOR = b'<meta name="generator" content="cca-pipeline shard">'  # marks pages of this project


@dataclass(frozen=True)
class View:
    """A picture as a data URL, and its size in words."""

    url: str
    size: str


@dataclass(frozen=True)
class Row:
    """A picture before and after augmentation, or why it was rejected."""

    key: str
    before: View | None = None
    after: list[View] = field(default_factory=list)
    refused: str = ""


def check_sheet(path: Path) -> None:
    """Raise `TargetError` where a sheet may not be written to `path`."""
    check_target(path, "shard", _is_sheet)


def write_sheet(
    path: Path, options: Options, rows: Iterable[Any], prepare: Callable[[Any], Result]
) -> None:
    """Write a page that shows the pictures of `rows` of a plan before and after augmentation."""
    spec = options.spec
    if spec is None or options.augment is None:
        raise ShardsError("a contact sheet shows what --augment does: give it too")
    writer = Writer(spec, options.check)
    augmenter = Augmenter(spec, options.seed, options.augment["device"])
    made = [_row(prepare(row), writer, augmenter) for row in rows]
    loader = PackageLoader("shards.augment", ".")
    environment = Environment(loader=loader, autoescape=True, finalize=shown)
    text = environment.get_template("sheet.html.j2").render(
        split=options.split, spec=yaml.safe_dump(spec.to_dict(), sort_keys=False), rows=made
    )
    write_text(path, text)


def _row(result: Result, writer: Writer, augmenter: Augmenter) -> Row:
    if not isinstance(result, Ready):
        return Row(result["key"], refused=result["reason"])
    key = result.row["key"]
    decoded = writer.decoded(result)
    if isinstance(decoded, dict):
        return Row(key, refused=decoded["reason"])
    before = _view(decoded.pixels)
    made = augmenter.each([(key, decoded.pixels)])[key]
    if isinstance(made, list) and made:
        return Row(key, before, [_view(one) for one in made])
    return Row(key, before, refused=writer.refusal(made))


def _view(pixels: Pixels) -> View:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    size = f"{image.width} x {image.height}"
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return View(f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}", size)


def _is_sheet(path: Path) -> bool:
    """Whether an earlier `shard` wrote the file."""
    with path.open("rb") as file:
        return GENERATOR in file.read(500)
