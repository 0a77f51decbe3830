"""Puts augmented pictures in the place of those that were read, on the way into a shard."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from pipeline.common.pictures import PictureError
from pipeline.common.pictures import read as read_picture
from shards.augment.operations import Augmenter
from shards.making.check import TOO_SMALL
from shards.making.sample import Ready, reject_row

BATCH_PIXELS = 1 << 22  # of the pictures that are worked on at once, unless one alone has more
Result = Ready | dict[str, Any]


def augmented(
    results: Iterable[Result], augmenter: Augmenter, batch_pixels: int = BATCH_PIXELS
) -> Iterator[Result]:
    """Yield, in order, the augmented samples of each picture of `results`, and the rejects."""
    batch: list[Result] = []
    pixels = 0
    for result in results:
        batch.append(result)
        if isinstance(result, Ready):
            pixels += result.row["width"] * result.row["height"]
        if pixels >= batch_pixels:
            yield from _worked_out(batch, augmenter)
            batch, pixels = [], 0
    yield from _worked_out(batch, augmenter)


def _worked_out(batch: Iterable[Result], augmenter: Augmenter) -> Iterator[Result]:
    read = [_pixels(one) for one in batch]
    done = augmenter((one.row["key"], pixels) for one, pixels in read if isinstance(one, Ready))
    for one, _ in read:
        if not isinstance(one, Ready):
            yield one
            continue
        made = done.pop(one.row["key"])
        if not made:
            detail = "smaller than the crop of the augmentation"
            yield reject_row(one.row["key"], one.row["source"], TOO_SMALL, detail, one.row["size"])
        for number, pixels in enumerate(made):
            key = one.row["key"] if len(made) == 1 else f"{one.row['key']}_{number}"
            yield _ready(one, key, pixels, augmenter.spec.format)


def _pixels(result: Result) -> tuple[Result, Any]:
    """Return a result with its pixels, which a reject lacks; a picture without any is a reject."""
    if not isinstance(result, Ready):
        return result, None
    row = result.row
    try:
        return result, read_picture(result.picture).shown()
    except PictureError as error:
        reason, detail = str(error.refusal), error.detail
        return reject_row(row["key"], row["source"], reason, detail, row["size"]), None


def _ready(one: Ready, key: str, pixels: np.ndarray[Any, np.dtype[np.uint8]], form: str) -> Ready:
    stream = io.BytesIO()
    options = {"compress_level": 4} if form == "png" else {"lossless": True, "exact": True}
    Image.fromarray(pixels).save(stream, form.upper(), **options)
    data = stream.getvalue()
    row = {
        **one.row,
        "key": key,
        "size": len(data),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "format": form,
        "sha256": hashlib.sha256(data).hexdigest(),
        "mode": "RGB",
        "orientation": 1,
        "origin_sha256": one.row["sha256"],
    }
    return replace(one, row=row, ending=form, picture=data)
