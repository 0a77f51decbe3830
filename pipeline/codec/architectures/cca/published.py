"""Reads checkpoints that the paper's authors published, and maps their parameter names to ours.

Their library named the densities' parameters `_matrix0`, ...; newer versions say `matrices.0`.
Keys may start with `module.`. Derived buffers are not weights and are never read. The auxiliary
model may be missing.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.codec.architectures.cca.auxiliary import AuxiliaryEntropyModel
from pipeline.codec.architectures.cca.config import CCAConfig
from pipeline.codec.architectures.cca.model import CCAModel
from pipeline.codec.errors import CodecError

_AUXILIARY = "aux_entropymodel."
_DERIVED = re.compile(
    r"(^|\.)(_offset|_quantized_cdf|_cdf_length|scale_table|target|scale_bound|"
    r"(likelihood_lower_bound|lower_bound_scale)\.bound)$"
)
_OLDER = re.compile(r"\._(matrix|bias|factor)(\d)$")
_NEWER = {"matrix": "matrices", "bias": "biases", "factor": "factors"}

# Ours -> theirs: first the start of a name is replaced, then its words.
_STARTS = (
    ("analysis.last.", "g_a.down.3."),
    ("analysis.", "g_a."),
    ("synthesis.last.", "g_s.up.3."),
    ("synthesis.", "g_s."),
    ("hyper_analysis.", "h_a."),
    ("hyper_mean.", "h_mean_s."),
    ("hyper_scale.", "h_scale_s."),
    ("hyper_density.", "z_entropy_bottleneck."),
    ("density.", "y_entropy_bottleneck."),
    ("context.", ""),
)
_WORDS = {
    "mean_supports": "mean_NAF_transforms",
    "scale_supports": "scale_NAF_transforms",
    "mean_heads": "mean_cc_transforms",
    "scale_heads": "scale_cc_transforms",
    "residual_heads": "lrp_transforms",
    "enter": "in_conv",
    "leave": "out_conv",
    "spatial_norm": "norm1",
    "expand": "dwconv.0",
    "depthwise": "dwconv.1",
    "attend": "sca.1",
    "project": "conv1",
    "channel_norm": "norm2",
    "widen": "FFN.0",
    "mix": "FFN.2",
    "reduce": "conv1",
    "spatial": "conv2",
    "restore": "conv3",
}


@dataclass(frozen=True)
class Published:
    """A published checkpoint as our models; `auxiliary` is None if the file has none."""

    model: CCAModel
    auxiliary: AuxiliaryEntropyModel | None


def read_published(path: Path) -> Published:
    """Read a checkpoint of the paper's authors (a pickle, read without running its code).

    Raises `CodecError` when the file is not such a checkpoint or has another architecture.
    """
    return from_published(_read_state(path), str(path))


def from_published(state: Mapping[str, Tensor], where: str = "the checkpoint") -> Published:
    """Make models from the authors' parameters `state`; errors call them `where`.

    Raises `CodecError` unless the parameters are exactly those of a CCA model.
    """
    weights = {_canonical(name): tensor for name, tensor in state.items()}
    weights = {name: t for name, t in weights.items() if not _DERIVED.search(name)}
    config = _config_of(weights, where)
    with torch.device("meta"):
        model, auxiliary = CCAModel(config), AuxiliaryEntropyModel(config)
    has_auxiliary = any(name.startswith(_AUXILIARY) for name in weights)
    names = published_names(model)
    modules: list[tuple[nn.Module, dict[str, str]]] = [(model, names)]
    if has_auxiliary:
        modules.append((auxiliary, published_names(auxiliary)))
    _check_names({n for _, renamed in modules for n in renamed.values()}, weights, where)
    for module, renamed in modules:
        _fill(module, renamed, weights, where)
    return Published(model.eval(), auxiliary.eval() if has_auxiliary else None)


def published_names(module: CCAModel | AuxiliaryEntropyModel) -> dict[str, str]:
    """Return the authors' name for each of our parameters."""
    prefix = "" if isinstance(module, CCAModel) else _AUXILIARY
    return {name: prefix + _published_name(name) for name, _ in module.named_parameters()}


def _published_name(name: str) -> str:
    for start, theirs in _STARTS:
        if name.startswith(start):
            name = theirs + name[len(start) :]
            break
    words = [_WORDS.get(word, word) for word in name.split(".")]
    if words[0] == "lrp_transforms":
        words.remove("head")
    return ".".join(words)


def _canonical(name: str) -> str:
    """Return the newer form of a key of the authors' files."""
    name = name.removeprefix("module.")
    return _OLDER.sub(lambda match: f".{_NEWER[match[1]]}.{match[2]}", name)


def _read_state(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise CodecError(f"there is no checkpoint {path}")
    try:
        _check_unpacked(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CodecError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError,
            IndexError, TypeError, AttributeError, AssertionError, zipfile.BadZipFile,
            MemoryError, OverflowError, RecursionError) as error:  # fmt: skip
        # torch's own message advises letting the file run its code; ours must not.
        raise CodecError(
            f"{path} is not a checkpoint of plain tensors ({type(error).__name__}): it is broken, "
            "something else, or would have to run code to be read, which is refused"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise CodecError(f"{path} has no `state_dict` of parameters")
    for name, tensor in state.items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not isinstance(name, str) or not plain or tensor.is_meta:
            raise CodecError(f"{path} has a `state_dict` with something that is no tensor: {name}")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if claimed > path.stat().st_size:
        # Views can repeat a few bytes; copies of them could take any amount of memory.
        raise CodecError(
            f"{path} claims weights of {claimed} bytes, and is {path.stat().st_size} long"
        )
    return state


def _check_unpacked(path: Path) -> None:
    """Refuse a compressed archive, which may unpack to any size: torch does not compress."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise CodecError(f"{path} would unpack to {unpacked} bytes: it is no checkpoint of torch")


def _config_of(weights: Mapping[str, Tensor], where: str) -> CCAConfig:
    """Return the config of the model that has these parameters."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise CodecError(f"{where} is of another architecture: it has no {name}")
        sizes = tuple(weights[name].shape)
        if len(sizes) != 4:
            raise CodecError(f"{where} is of another architecture: {name} is {sizes}")
        return sizes

    slices = _count(weights, r"mean_cc_transforms\.(\d+)\.4\.weight$")
    fields: dict[str, Any] = {
        "latent_channels": shape("g_a.down.3.weight")[0],
        "slices": slices,
        "transform_channels": tuple(shape(f"g_a.down.{i}.weight")[0] for i in range(3)),
        "transform_blocks": tuple(
            _count(weights, rf"g_a\.blocks\.{i}\.(\d+)\.beta$") for i in range(3)
        ),
        "context_channels": shape("mean_NAF_transforms.0.in_conv.weight")[0],
        "context_blocks": _count(weights, r"mean_NAF_transforms\.0\.blocks\.(\d+)\.beta$"),
        "hyper_latent_channels": shape("h_a.4.weight")[0],
        "head_channels": tuple(shape(f"mean_cc_transforms.0.{i}.weight")[0] for i in (0, 2)),
    }
    sizes = tuple(shape(f"mean_cc_transforms.{i}.4.weight")[0] for i in range(slices))
    return _with_exponent(fields, sizes, where)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _with_exponent(fields: dict[str, Any], sizes: tuple[int, ...], where: str) -> CCAConfig:
    # The file does not state the exponent: try the published one, then steps of 0.1.
    for exponent in (1.7, *(i / 10 for i in range(41))):
        try:
            config = CCAConfig(slice_exponent=exponent, **fields)
        except CodecError:
            continue
        if config.slice_sizes == sizes:
            return config
    raise CodecError(f"{where} is of another architecture: its slices have {sizes} channels")


def _check_names(expected: set[str], weights: Mapping[str, Tensor], where: str) -> None:
    missing, unknown = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
    if missing or unknown:
        first = f"it lacks {missing[0]}" if missing else f"it also has {unknown[0]}"
        raise CodecError(
            f"{where} is of another architecture: {first} "
            f"({len(missing)} parameters missing, {len(unknown)} unknown)"
        )


def _fill(
    module: nn.Module, renamed: Mapping[str, str], weights: Mapping[str, Tensor], where: str
) -> None:
    state = {}
    for ours, parameter in module.named_parameters():
        tensor = weights[renamed[ours]]
        if tensor.shape != parameter.shape or not tensor.is_floating_point():
            raise CodecError(
                f"{where} is of another architecture: {renamed[ours]} is {tuple(tensor.shape)}, "
                f"not {tuple(parameter.shape)}"
            )
        state[ours] = tensor.detach().float().contiguous().clone()
    module.load_state_dict(state, assign=True)
