"""A model file's configuration, weights and fingerprint, read without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from pipeline.codec import architectures
from pipeline.codec.config import Config
from pipeline.codec.errors import CodecError
from pipeline.codec.light.form import LightForm
from pipeline.codec.scales import Scale, Scales, digested
from pipeline.codec.stored import FORMAT, VERSIONS, parse_scales
from pipeline.common.documents import parse

_PREFIX = "model."


@dataclass(frozen=True)
class Stored:
    """The content of a model file. `weights` are float32, by their names in the model."""

    config: Config
    form: LightForm
    weights: dict[str, npt.NDArray[np.float32]]
    scales: dict[str, Scale]
    fingerprint: str


def read_stored(file: Path) -> Stored | None:
    """Read the model in `file`; return None if it has no light form, or is not valid.

    `pipeline.codec.load_model` tells what is wrong with a file that is not valid.
    """
    try:
        with safe_open(file, framework="np") as tensors:
            metadata = tensors.metadata() or {}
            config, scales = _config(metadata), parse_scales(metadata)
            make = architectures.load(config.architecture).light
            form = make() if make is not None else None
            if form is None or not _holds(tensors, form.shapes(config)):
                return None
            weights = {
                name: tensors.get_tensor(_PREFIX + name).astype(np.float32)
                for name in form.shapes(config)
            }
    except (SafetensorError, CodecError, OSError, TypeError, ValueError, RecursionError):
        return None
    if not all(np.isfinite(values).all() for values in weights.values()):
        return None
    fingerprint = _fingerprint(config, weights, scales)
    if metadata.get("fingerprint", fingerprint) not in ("", fingerprint):
        return None
    return Stored(config, form, weights, scales, fingerprint)


def _holds(tensors: Any, expected: Mapping[str, tuple[int, ...]]) -> bool:
    """Tell whether an open file has the tensors `expected` and no others, in 16 or 32 bits."""
    # safetensors' open file has keys(), but can't be iterated over.
    names = {n.removeprefix(_PREFIX) for n in tensors.keys() if n.startswith(_PREFIX)}  # noqa: SIM118
    if names != expected.keys():
        return False
    stored = {name: tensors.get_slice(_PREFIX + name) for name in names}
    return all(
        tuple(part.get_shape()) == expected[name] and part.get_dtype() in ("F32", "F16")
        for name, part in stored.items()
    )


def _config(metadata: Mapping[str, str]) -> Config:
    if metadata.get("format") != FORMAT or metadata.get("version") not in VERSIONS:
        raise CodecError("another format")
    description = parse(metadata.get("config", "{}"))
    if not isinstance(description, dict):
        raise CodecError("no config")
    return architectures.config_of(description)


def _fingerprint(
    config: Config, weights: dict[str, npt.NDArray[np.float32]], scales: Scales
) -> str:
    """Return the digest that `pipeline.codec.fingerprint` defines."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, values in sorted(weights.items()):
        digest.update(f"{name} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values, "<f4").data)
    if scales:
        digest.update(digested(scales))
    return digest.hexdigest()
