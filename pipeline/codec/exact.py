"""Exact copies of networks: the same results, bit by bit, on any device and number of threads.

Encoder and decoder must predict equal means and scales, but floating-point sums depend on their
order, and so on threads, batch sizes, libraries and devices. In an exact copy every sum is exact,
so its order does not matter (`pipeline.codec.exact_layers`). All other operations work on one
number at a time: either IEEE 754 defines them to the last bit (+, -, *, /, sqrt, rounding), or they
are looked up in a table (GELU, tanh).

`exact_copy` replaces the layers of the float model and keeps its code. It refuses, by name, a layer
or a setting that has no exact form. The code between the layers may add and multiply single numbers
but not sum over them; it is checked once for each model (`pipeline.codec.exact_code`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from pipeline.codec.errors import CodecError
from pipeline.codec.exact_layers import (
    ExactConv,
    ExactDeconv,
    ExactLayer,
    ExactLinear,
    ExactMean,
    ExactNorm,
    Lookup,
    gelu,
    gelu_tanh,
    sigmoid,
    silu,
    tanh,
)
from pipeline.codec.layers import ChannelNorm, GlobalMean, MaskedConv2d
from pipeline.codec.scaled_layers import (
    OrderedMean,
    ScaledConv,
    ScaledDeconv,
    ScaledLinear,
    ScaledLookup,
    ScaledNorm,
    ScaledTaps,
    scale_of,
)

L = TypeVar("L", bound=nn.Module)

# torch's layers that move numbers, or change each number by operations that IEEE 754 defines.
_EXACT_ALREADY: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.Hardtanh,
    nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.ZeroPad2d,
    nn.ReflectionPad2d, nn.ReplicationPad2d, nn.UpsamplingNearest2d, nn.MaxPool2d,
)  # fmt: skip
_CONTAINERS: tuple[type[nn.Module], ...] = (
    nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict,
)  # fmt: skip
_FORMS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {}


def exact_form(kind: type[L], make: Callable[[L], nn.Module]) -> None:
    """Register `make`, with which `exact_copy` replaces layers of exactly the class `kind`.

    `make` takes a float64 layer on the CPU and returns an `ExactLayer` with the same inputs and
    outputs, whose results are the same to the last bit on any device and in any order of its sums.
    It raises `CodecError` for settings that it can't compute.
    """
    _FORMS[kind] = make


def exact_copy(module: nn.Module) -> Any:
    """Return a copy of `module`, on its device, whose results don't depend on the order of sums.

    The copy computes in float64, or in float32 if the layers have scales (`pipeline.codec.scales`).
    Supported are convolutions (masked, grouped, dilated and strided ones too), transposed
    convolutions, linear layers, `ChannelNorm`, `GlobalMean`, ReLU and similar functions, GELU,
    SiLU, sigmoid and tanh. Raises `CodecError` naming a layer or a setting that is not supported,
    or a layer without a scale where others have one, and when a weight is not finite.
    """
    parameter = next(module.parameters(), None)
    # Made on the CPU, because the grids of weights come from floating-point sums.
    copied = copy.deepcopy(module).cpu().double().requires_grad_(False).eval()
    if any(not tensor.isfinite().all() for tensor in copied.state_dict().values()):
        raise CodecError("the model has weights that are not finite numbers; it can't be used")
    scaled = exact_dtype(module) == torch.float32
    if _seen.layers is not None:
        _seen.layers.update(layer for layer in module.modules() if takes_scale(layer))
    copied = _exact(copied, type(module).__name__, {}, scaled)
    if scaled:
        _to_float32(copied)
    return copied if parameter is None else copied.to(parameter.device)


def exact_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype that `exact_copy` of `module` computes in: float32 if layers have scales."""
    scaled = any(scale_of(layer) is not None for layer in module.modules())
    return torch.float32 if scaled else torch.float64


def takes_scale(layer: nn.Module) -> bool:
    """Tell whether a layer may have a scale: its sums then become exact in float32.

    Linear layers, norms over channels, and dense or depthwise convolutions may have one.
    """
    if type(layer) not in _FORMS:
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.groups == 1
    return isinstance(layer, nn.Linear | ChannelNorm)


@contextmanager
def layers_seen() -> Iterator[set[nn.Module]]:
    """Yield a set that collects the layers copied by this thread which may have a scale."""
    before, _seen.layers = _seen.layers, set()
    try:
        yield _seen.layers
    finally:
        _seen.layers = before


class _Seen(threading.local):
    layers: set[nn.Module] | None = None


_seen = _Seen()


def _to_float32(copied: nn.Module) -> None:
    """Convert elementwise layers to float32; layers with sums keep their own precision."""
    for module in copied.modules():
        if not isinstance(module, ExactLayer):
            module._apply(_single, recurse=False)


def _single(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.is_floating_point() else x


def _exact(module: nn.Module, name: str, done: dict[int, nn.Module], scaled: bool) -> nn.Module:
    """Return the exact form of `module`; `done` caches the forms by the identity of modules."""
    if id(module) not in done:
        done[id(module)] = _replaced(module, name, done, scaled)
    return done[id(module)]


def _replaced(module: nn.Module, name: str, done: dict[int, nn.Module], scaled: bool) -> nn.Module:
    kind = type(module)
    theirs = next(base for base in kind.__mro__ if base.__module__.startswith("torch."))
    if kind in _FORMS or theirs not in _CONTAINERS:
        if kind not in _FORMS and kind not in _EXACT_ALREADY:
            raise CodecError(
                f"the layer {name} ({kind.__name__}) has no exact form, so files made with it "
                f"might not decode elsewhere; known are {_known()}"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise CodecError(f"the layer {name} has hooks, which have no exact form")
        if scaled and takes_scale(module) and scale_of(module) is None:
            raise CodecError(f"the layer {name} has no scale, and others have: calibrate it again")
        try:
            form = _FORMS[kind](module) if kind in _FORMS else module
        except CodecError as error:
            raise CodecError(f"the layer {name} ({kind.__name__}): {error}") from error
        return _in_float32(form) if scaled else form
    for part, child in list(module._modules.items()):
        if child is not None:
            module._modules[part] = _exact(child, f"{name}.{part}", done, scaled)
    return module


def _in_float32(form: nn.Module) -> nn.Module:
    """Return the float32 form of a look-up or a mean, which need no scale; others as they are."""
    if isinstance(form, Lookup):
        return ScaledLookup(form)
    return OrderedMean() if isinstance(form, ExactMean) else form


def _known() -> str:
    return ", ".join(sorted(kind.__name__ for kind in (*_FORMS, *_EXACT_ALREADY)))


def conv_form(layer: nn.Conv2d) -> nn.Module:
    """Return the exact form of a convolution, by its scale if it has one."""
    weight = layer.masked_weight() if isinstance(layer, MaskedConv2d) else None
    if scale_of(layer) is None:
        return ExactConv(layer, weight)
    return ScaledConv(layer, weight) if layer.groups == 1 else ScaledTaps(layer, weight)


def _deconv(layer: nn.ConvTranspose2d) -> nn.Module:
    # Made in any case: it refuses the settings that neither form can compute.
    plain = ExactDeconv(layer)
    return plain if scale_of(layer) is None else ScaledDeconv(layer)


def _linear(layer: nn.Linear) -> nn.Module:
    return ExactLinear(layer) if scale_of(layer) is None else ScaledLinear(layer)


def _norm(layer: ChannelNorm) -> nn.Module:
    return ExactNorm(layer) if scale_of(layer) is None else ScaledNorm(layer)


def _gelu_of(layer: nn.GELU) -> Lookup:
    return Lookup(gelu_tanh if layer.approximate == "tanh" else gelu, above=None)


for _kind in (nn.Conv2d, MaskedConv2d):
    exact_form(_kind, conv_form)
exact_form(nn.ConvTranspose2d, _deconv)
exact_form(nn.Linear, _linear)
exact_form(ChannelNorm, _norm)
exact_form(GlobalMean, lambda layer: ExactMean())
exact_form(nn.GELU, _gelu_of)
exact_form(nn.SiLU, lambda layer: Lookup(silu, above=None, end=16))
exact_form(nn.Sigmoid, lambda layer: Lookup(sigmoid, above=1.0, end=16))
exact_form(nn.Tanh, lambda layer: Lookup(tanh, above=1.0))
