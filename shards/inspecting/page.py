"""The page of `pipeline inspect --html`: histograms and a contact sheet, in one file."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from jinja2 import Environment, PackageLoader
from PIL import Image

from pipeline.common.atomic import write_text
from pipeline.common.pictures import thumbnail
from pipeline.common.printable import shown
from pipeline.common.targets import check_target
from shards.inspecting.summary import SplitFacts, facts_of, manifests, read_tables
from shards.making.listing import hash_keys
from shards.manifest import Manifest
from shards.store import Store

SHOWN = 60  # pictures of the contact sheet, which the colour histogram is taken from too
THUMBNAIL = 128  # pixels
BARS = 24
GENERATOR = b'<meta name="generator" content="cca-pipeline inspect">'  # tells a page of ours


@dataclass(frozen=True)
class Bar:
    """A bar: what it counts, how many, and its height in percent of the tallest."""

    label: str
    count: int
    height: float


@dataclass(frozen=True)
class Thumbnail:
    """A picture of the contact sheet, as a data URL; empty if it cannot be decoded."""

    key: str
    size: str
    url: str


@dataclass(frozen=True)
class SplitPage:
    """The figures of a split on the page: histograms by title, and colours as bars by channel."""

    facts: SplitFacts
    histograms: dict[str, list[Bar]]
    colours: dict[str, list[Bar]]
    thumbnails: list[Thumbnail]


def write_page(dest: str | Path, path: Path, split: str | None = None, force: bool = False) -> None:
    """Write a page about the splits of `dest` to `path`, whole.

    Raises:
        ShardsError: nothing complete is there.
        TargetError: at `path` is a file that is no such page; `force` replaces it.
    """
    check_target(path, "inspect", _is_page, force=force, make_folder=True)
    store = Store(dest)
    pages = [_page(store, one, read_tables(dest, one)) for one in manifests(dest, split)]
    loader = PackageLoader("shards.inspecting", ".")
    environment = Environment(loader=loader, autoescape=True, finalize=shown)
    text = environment.get_template("page.html.j2").render(where=str(dest), pages=pages)
    write_text(path, text)


def _is_page(path: Path) -> bool:
    """Whether an earlier `inspect` wrote the file."""
    with path.open("rb") as file:
        return GENERATOR in file.read(500)


def _page(store: Store, manifest: Manifest, table: pa.Table) -> SplitPage:
    width, height = (table[side].to_numpy().astype(np.float64) for side in ("width", "height"))
    known = (width > 0) & (height > 0)
    histograms = {
        "Shorter side, pixels": bars(np.minimum(width, height)[known]),
        "Aspect, width over height": bars(width[known] / height[known], digits=2),
        "Size, kilobytes": bars(table["size"].to_numpy() / 1000),
    }
    pictures = list(_pictures(store, manifest, chosen(table)))
    thumbnails = [_thumbnail(row, image) for row, image in pictures]
    colours = _colours([image for _, image in pictures if image is not None])
    return SplitPage(facts_of(manifest, table), histograms, colours, thumbnails)


def chosen(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of the contact sheet: those whose keys hash lowest, so always the same."""
    if not table.num_rows:
        return []
    order = np.argsort(hash_keys(table["key"].to_pylist())[:, 0])[:SHOWN]
    return list(table.take(pa.array(order)).to_pylist())


def bars(values: npt.NDArray[Any], digits: int = 0) -> list[Bar]:
    """Return a histogram of `values`; what exceeds the 99th percentile is in the last bar."""
    if not len(values):
        return []
    low, high = float(values.min()), float(np.percentile(values, 99))
    if high <= low:
        high = low + 1
    counts, edges = np.histogram(np.minimum(values, high), BARS, (low, high))
    labels = [f"{edge:.{digits}f} and more" for edge in edges[:-1]]
    return _bars(labels, counts)


def _bars(labels: Sequence[str], counts: npt.NDArray[Any]) -> list[Bar]:
    top = max(int(counts.max()), 1)
    return [
        Bar(label, int(count), 100 * int(count) / top)
        for label, count in zip(labels, counts, strict=True)
    ]


def _pictures(
    store: Store, manifest: Manifest, rows: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Image.Image | None]]:
    """Yield each row with its small RGB picture, or None if it cannot be had."""
    for row in rows:
        try:
            with store.open(f"{manifest.shards[row['shard']].name}.tar") as stream:
                end = stream.seek(0, os.SEEK_END)
                stream.seek(row["offset"])
                yield row, _small(stream.read(min(row["size"], end)))
        except (OSError, ValueError):
            yield row, None


def _small(data: bytes) -> Image.Image:
    image = Image.fromarray(thumbnail(data, THUMBNAIL))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _thumbnail(row: dict[str, Any], image: Image.Image | None) -> Thumbnail:
    url = ""
    if image is not None:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=80)
        url = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    return Thumbnail(row["key"], f"{row['width']} x {row['height']}", url)


def _colours(images: Sequence[Image.Image]) -> dict[str, list[Bar]]:
    if not images:
        return {}
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in images])
    labels = [f"{256 * bar // 32} and more" for bar in range(32)]
    return {
        name: _bars(labels, np.histogram(pixels[:, channel], 32, (0, 256))[0])
        for channel, name in enumerate(("red", "green", "blue"))
    }
