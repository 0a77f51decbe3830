"""Reads the metadata of model files, without torch and without the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.codec import architectures
from pipeline.codec.config import Config
from pipeline.codec.errors import CodecError
from pipeline.codec.info import ModelInfo
from pipeline.codec.scales import Scale, scales_of
from pipeline.common.documents import parse

FORMAT = "cca-pipeline model"
# A file has the lowest version that its model needs: version 2 added scales of layers.
VERSION = "1"
VERSION_OF_SCALES = "2"
VERSIONS = (VERSION, VERSION_OF_SCALES)
FILE_NAME = "model.safetensors"


def target_file(path: Path) -> Path:
    """Return the file that `save_model` writes for `path`, a .safetensors file or a folder."""
    return path if path.suffix == ".safetensors" else path / FILE_NAME


def load_config(path: str | Path) -> Config:
    """Read the config of the model in `path`, without its weights; raises as `load_model` does."""
    return read_header(model_file(path))[0]


def load_info(path: str | Path) -> ModelInfo:
    """Read the origin of the model in `path`, without its weights; raises as `load_model` does."""
    return read_header(model_file(path))[1]


def model_file(path: str | Path) -> Path:
    """Return the model file that `path` is or contains; a missing one raises `CodecError`."""
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise CodecError(f"there is no model in {path}: give a .safetensors file or its folder")
    return file


def stored_fingerprint(file: Path) -> str:
    """Return the fingerprint that `file` states; "" if it is not a model file."""
    try:
        with opened(file) as tensors:
            metadata = tensors.metadata() or {}
    except CodecError:
        return ""
    return str(metadata.get("fingerprint", ""))


def opened(file: Path, framework: str = "np") -> Any:
    """Open a model file; `framework`, np or pt, is the type of the tensors that it returns."""
    try:
        return safe_open(file, framework=framework)
    except (SafetensorError, OSError) as error:
        raise CodecError(
            f"{file} is not a model of ours ({error}); `pipeline import` reads published ones"
        ) from error


def read_scales(file: Path) -> dict[str, Scale]:
    """Return the scales of the layers of the model in `file`; none in a file of version 1."""
    with opened(file) as tensors:
        metadata = tensors.metadata() or {}
    try:
        return parse_scales(metadata)
    except CodecError as error:
        raise CodecError(f"{file} can't be used: {error}") from error


def parse_scales(metadata: Mapping[str, str]) -> dict[str, Scale]:
    """Return the scales in a file's metadata; `CodecError` if they contradict its version."""
    if (metadata.get("version") == VERSION_OF_SCALES) != ("scales" in metadata):
        raise CodecError(
            f"its version is {metadata.get('version')}, and scales belong to version "
            f"{VERSION_OF_SCALES} alone"
        )
    if "scales" not in metadata:
        return {}
    if not metadata.get("fingerprint"):
        raise CodecError("it has scales and no fingerprint that vouches for them")
    try:
        return scales_of(parse(metadata["scales"]))
    except ValueError as error:
        raise CodecError(str(error)) from error


def read_header(file: Path) -> tuple[Config, ModelInfo, str]:
    """Return the config, the origin and the stated fingerprint of a model."""
    with opened(file) as tensors:
        metadata = tensors.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise CodecError(f"{file} holds no model of this project: its metadata doesn't say so")
    version = metadata.get("version")
    if version not in VERSIONS:
        raise CodecError(
            f"{file} has format version {version}, and this program reads versions up to "
            f"{VERSION_OF_SCALES}: it needs a program that reads version {version}"
        )
    try:
        config = parse(metadata["config"])
        info = parse(metadata.get("info", "{}"))
    except (KeyError, ValueError) as error:
        raise CodecError(f"{file} has a broken description of its model ({error})") from error
    if not isinstance(config, dict) or not isinstance(info, dict):
        raise CodecError(f"{file} has a broken description of its model")
    try:
        return architectures.config_of(config), ModelInfo.of(info), metadata.get("fingerprint", "")
    except CodecError as error:
        raise CodecError(f"{file} has a description that makes no sense: {error}") from error
