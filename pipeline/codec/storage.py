"""Model files: one safetensors file with the weights, the configuration and their origin.

Tensors are named `model.NAME` and `auxiliary.NAME`. The metadata holds `format`, `version`,
`fingerprint` (streams name their model by it, and it reveals damaged weights), `config` (JSON with
the architecture's name, unless it is older than the choice), `info` (JSON of a `ModelInfo`) and, in
version 2, `scales` (JSON: a layer's name to its exponent and bits, see `pipeline.codec.scales`).
Weights are float32, or float16 in files that should be small (`round_to_half`).
Nothing in the file is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.codec import architectures
from pipeline.codec.errors import CodecError
from pipeline.codec.info import ModelInfo
from pipeline.codec.model import AuxiliaryModel, Model
from pipeline.codec.scales import plain
from pipeline.codec.stored import (
    FORMAT,
    VERSION,
    VERSION_OF_SCALES,
    model_file,
    opened,
    read_header,
    read_scales,
    target_file,
)
from pipeline.common.atomic import write_bytes
from pipeline.common.devices import memory_needed, pick_device


def save_model(
    model: Model,
    path: Path,
    info: ModelInfo | Mapping[str, object] | None = None,
    auxiliary: AuxiliaryModel | None = None,
    *,
    half: bool = False,
) -> Path:
    """Write `model` (and `auxiliary`) with `info`, whole or not at all; return the file.

    Without `info`, the model's own is written. `path` ends in .safetensors, or is a folder that
    gets a `model.safetensors`. With `half`, weights are float16 (see `round_to_half`).
    """
    path = target_file(path)
    tensors = _named("model", model, half)
    if auxiliary is not None:
        tensors |= _named("auxiliary", auxiliary, half)
    metadata = {
        "format": FORMAT,
        "version": VERSION_OF_SCALES if model.scales else VERSION,
        "fingerprint": model.fingerprint,
        "config": json.dumps(model.config.to_dict()),
        "info": json.dumps((model.info if info is None else ModelInfo.of(info)).to_dict()),
    }
    if model.scales:
        metadata["scales"] = json.dumps(plain(model.scales))
    write_bytes(path, save(tensors, metadata))
    return path


def load_model(path: str | Path, device: str = "cpu") -> Model:
    """Read the model in `path` (a file, or a folder with a `model.safetensors`) for evaluation.

    The weights have memory of their own: later changes of the file do not affect them.

    Raises `CodecError` if there is no file, if it is not a model of this project, or if its weights
    do not match its fingerprint; and as `pick_device` does.
    """
    file = model_file(path)
    config, info, claimed = read_header(file)
    scales = read_scales(file)
    with torch.device("meta"):
        model: Model = architectures.load(config.architecture).model(config)
    _fill(model, file, "model")
    try:
        model.set_scales(scales)
    except CodecError as error:
        raise CodecError(f"{file} is damaged: {error}") from error
    if claimed and model.fingerprint != claimed:
        what = "weights and scales" if scales else "weights"
        raise CodecError(
            f"{file} is damaged: its {what} have the fingerprint {model.fingerprint[:16]}, and it"
            f" was written with {claimed[:16]}; copy it again from where it came from"
        )
    model.info = info
    target = pick_device(device)
    with memory_needed(device):
        return model.to(target).eval()


def load_auxiliary(path: str | Path, device: str = "cpu") -> AuxiliaryModel | None:
    """Read the auxiliary model saved beside the model in `path`; None if there is none."""
    file = model_file(path)
    config, _, _ = read_header(file)
    with opened(file) as tensors:
        # safetensors' open file has keys(), but can't be iterated over.
        if not any(name.startswith("auxiliary.") for name in tensors.keys()):  # noqa: SIM118
            return None
    make = architectures.load(config.architecture).auxiliary
    if make is None:
        raise CodecError(f"{file} has an auxiliary model, and {config.architecture} has none")
    with torch.device("meta"):
        auxiliary: AuxiliaryModel = make(config)
    _fill(auxiliary, file, "auxiliary")
    return auxiliary.to(device).eval()


def round_to_half(module: nn.Module) -> None:
    """Round the weights of `module` to the nearest float16, still held as float32.

    Raises `CodecError`, and rounds nothing, when a weight is too large for float16 (over 65,504).
    """
    tensors = module.state_dict()
    for name, tensor in tensors.items():
        if not tensor.half().isfinite().all():
            raise CodecError(f"{name} has a weight beyond the range of float16: keep float32")
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(tensor.half())


def _named(prefix: str, module: nn.Module, half: bool) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in module.state_dict().items():
        stored = values = tensor.detach().to("cpu", torch.float32).contiguous()
        if half:
            stored = values.half()
            if not torch.equal(stored.float(), values):
                raise CodecError(
                    f"{prefix}.{name} does not fit into float16: round the model first"
                )
        tensors[f"{prefix}.{name}"] = stored
    return tensors


def _fill(module: nn.Module, file: Path, prefix: str) -> None:
    """Load the tensors of `file` into `module`, on the meta device; their names must match."""
    expected = module.state_dict()
    with opened(file, "pt") as tensors:
        # safetensors' open file has keys(), but can't be iterated over.
        names = {n[len(prefix) + 1 :] for n in tensors.keys() if n.startswith(f"{prefix}.")}  # noqa: SIM118
        wrong = sorted(names ^ expected.keys())
        if wrong:
            raise CodecError(
                f"{file} holds another architecture than it says: {len(wrong)} tensors missing "
                f"or unknown, first {prefix}.{wrong[0]}"
            )
        state = {}
        for name, tensor in expected.items():
            view = tensors.get_slice(f"{prefix}.{name}")
            stored = view.get_dtype()
            if tuple(view.get_shape()) != tuple(tensor.shape) or stored not in ("F32", "F16"):
                raise CodecError(
                    f"{file} holds another architecture than it says: {prefix}.{name} is "
                    f"{stored} {view.get_shape()}, not F32 {list(tensor.shape)}"
                )
            # A copy, because safetensors returns a view of the file, mapped into memory.
            state[name] = tensors.get_tensor(f"{prefix}.{name}").to(torch.float32, copy=True)
    module.load_state_dict(state, assign=True)
