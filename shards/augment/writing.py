"""Puts augmented pictures in the place of those that were read, on the way into a shard."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.common.pictures import PictureError, opened
from pipeline.common.pictures import read as read_picture
from pipeline.common.pictures.colour import same_in_srgb, to_srgb, usable_profile
from pipeline.common.pictures.orientation import turned
from shards.augment.encoders import encoder_for
from shards.augment.operations import Refused
from shards.augment.resampling import Pixels
from shards.augment.spec import Spec
from shards.samples.check import TOO_SMALL, RejectedError, has_profile, is_plain, plain_pixels
from shards.samples.sample import Ready, reject_row

Result = Ready | dict[str, Any]


class Decoded(NamedTuple):
    """A picture's pixels, uint8 (H, W, 3), and the colour profile to write beside them."""

    pixels: Pixels
    profile: bytes | None = None


class Writer:
    """Decodes pictures before augmentation, and encodes the results."""

    def __init__(self, spec: Spec, check: str = "full") -> None:
        self.spec = spec
        self._full = check == "full"
        self._encode = encoder_for(spec)

    def decoded(self, one: Ready) -> Decoded | dict[str, Any]:
        """Return the pixels of a picture, or the row of its reject."""
        try:
            if is_plain(one.row["format"], one.row["mode"], one.picture):
                pixels = plain_pixels(one.picture, self._full)
                if pixels is not None:
                    upright = np.ascontiguousarray(turned(pixels, one.row["orientation"]))
                    return self._coloured(upright, _profile_of(one.picture))
            picture = read_picture(one.picture)
            if self.spec.colours == "kept":
                return Decoded(picture.coded(), picture.profile)
            return Decoded(picture.shown())
        except PictureError as error:
            return _rejected(one, str(error.refusal), error.detail)
        except RejectedError as error:
            return _rejected(one, error.reason, error.detail)

    def _coloured(self, pixels: Pixels, profile: bytes | None) -> Decoded:
        """Return decoded RGB as `colours` wants it."""
        if profile is None or self.spec.colours == "kept":
            return Decoded(pixels, profile)
        if same_in_srgb(pixels, profile):
            return Decoded(pixels)
        return Decoded(np.asarray(to_srgb(Image.fromarray(pixels), profile)))

    def refusal(self, made: list[Pixels] | Refused) -> str:
        """Return in a few words why there are no results."""
        return made.reason if isinstance(made, Refused) else TOO_SMALL

    def results(
        self, one: Ready, made: list[Pixels] | Refused, profile: bytes | None
    ) -> list[Result]:
        """Return the samples made of a picture, or its reject."""
        if isinstance(made, Refused):
            return [_rejected(one, made.reason, made.detail)]
        if not made:
            return [_rejected(one, TOO_SMALL, "smaller than the crop of the augmentation")]
        keys = [one.row["key"]]
        if len(made) > 1:
            keys = [f"{one.row['key']}_{number}" for number in range(len(made))]
        return [self._ready(one, *each, profile) for each in zip(keys, made, strict=True)]

    def _ready(self, one: Ready, key: str, pixels: Pixels, profile: bytes | None) -> Ready:
        data = self._encode(np.ascontiguousarray(pixels), profile)
        row = {
            **one.row,
            "key": key,
            "size": len(data),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "format": self.spec.format,
            "sha256": hashlib.sha256(data).hexdigest(),
            "mode": "RGB",
            "orientation": 1,
            "origin_sha256": one.row["sha256"],
        }
        return replace(one, row=row, ending=self.spec.format, picture=data)


def _profile_of(jpeg: bytes) -> bytes | None:
    """Return the colour profile of a JPEG of RGB samples, if it has one that can be used."""
    if not has_profile(jpeg):
        return None
    with opened(jpeg) as image:
        return usable_profile(image.info.get("icc_profile"), image.mode)


def _rejected(one: Ready, reason: str, words: str) -> dict[str, Any]:
    return reject_row(one.row["key"], one.row["source"], reason, words, one.row["size"])
