"""Reads the measurements of a codec from an evaluation's results.json, which is validated."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.common.documents import DocumentError, parse_object
from pipeline.tracking.errors import TrackingError

MEASURED = ("bpp", "psnr", "ms_ssim", "ms_ssim_db")
# For a metric over several rates: the end of its tag's name, and the word between its ends.
RANGE, TO = "_range", " to "


class _Form(BaseModel):
    model_config = ConfigDict(strict=True)


class _Model(_Form):
    fingerprint: str
    name: str = ""
    curve: str = ""
    bpp: float | None = None
    psnr: float | None = None
    ms_ssim: float | None = None
    ms_ssim_db: float | None = None


class _Picture(_Form):
    name: str = ""
    sha256: str | None = None


class _Entry(_Form):
    value: float | None = None


class _Results(_Form):
    models: list[_Model]
    pictures: list[_Picture] = []
    bd_rate: dict[str, dict[str, dict[str, _Entry]]] = {}


def measured(results: Path, fingerprint: str) -> dict[str, float | str]:
    """Return the measurements in `results` (evaluation's results.json) of the codec `fingerprint`.

    Raises TrackingError when the file is not such results, or does not have that codec.
    """
    content = _read(results)
    ours = [model for model in content.models if model.fingerprint == fingerprint]
    if not ours:
        known = ", ".join(model.name for model in content.models)
        raise TrackingError(
            f"{results} has no measurement of this model (fingerprint {fingerprint[:12]}), only "
            f"of {known}: evaluate it first"
        )
    tags: dict[str, float | str] = {"measured_on": _set_name(content)}
    for key in MEASURED:
        values = [value for value in (getattr(model, key) for model in ours) if value is not None]
        if len(ours) == 1 and values:
            tags[key] = values[0]
        elif values:
            tags[f"{key}{RANGE}"] = f"{min(values):g}{TO}{max(values):g}"
    return tags | _compared(content.bd_rate.get(ours[0].curve, {}))


def _compared(anchors: Mapping[str, Mapping[str, _Entry]]) -> dict[str, float]:
    return {
        f"bd_rate.{_plain(anchor)}.{quality}": entry.value
        for anchor, qualities in anchors.items()
        for quality, entry in qualities.items()
        if entry.value is not None
    }


def _read(results: Path) -> _Results:
    try:
        content: dict[str, Any] = parse_object(results.read_bytes())
        return _Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg'].lower()}"
    except (OSError, DocumentError) as error:
        reason = str(error)
    raise TrackingError(f"{results} is not a results.json of `pipeline evaluate` ({reason})")


def _set_name(content: _Results) -> str:
    """Return a name for the measured set: how many pictures, which, and a digest of them all."""
    names = sorted(picture.name for picture in content.pictures)
    marks = "".join(sorted(str(picture.sha256) for picture in content.pictures))
    digest = hashlib.sha256(marks.encode(errors="surrogatepass")).hexdigest()[:8]
    which = f" ({names[0]} to {names[-1]}, {digest})" if names else ""
    return f"{len(names)} pictures{which}"


def _plain(name: str) -> str:
    """Return a curve's name in the characters that a store's keys may have."""
    return re.sub(r"[^\w\-. /]", "", name, flags=re.ASCII)
