"""Networks that give the same numbers, bit by bit, on any device and with any thread count.

What the entropy decoder is steered by must come out equal in encoder and decoder, but floating
point sums depend on their order, hence on threads, batch sizes, libraries and devices. Here
every sum is exact, so that it has no order (`pipeline.codec.exact_layers`). What is not a sum
works on one number at a time with operations that IEEE 754 defines to the last bit (+, -, *, /,
sqrt, rounding), or looks it up in a table (GELU, tanh).

The structure is the float model's: `exact_copy` replaces its layers, not its code. A layer, or a
setting of one, that has no exact form is refused by name. The code between the layers, which may
add and multiply but not sum, is watched once for each model (`pipeline.codec.exact_code`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from pipeline.codec.errors import CodecError
from pipeline.codec.exact_layers import (
    ExactConv,
    ExactDeconv,
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

L = TypeVar("L", bound=nn.Module)

# torch's own that move numbers, or work on each alone by operations that IEEE 754 defines.
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
    """Let `exact_copy` replace layers of just the class `kind` by what `make` returns for them.

    `make` gets a float64 layer on the CPU and returns an `ExactLayer` with the same inputs and
    outputs, which computes the same to the last bit whatever the device and the order of its
    sums. It raises `CodecError` for settings that it can't.
    """
    _FORMS[kind] = make


def exact_copy(module: nn.Module) -> Any:
    """Return a float64 copy of `module`, where it is, whose results don't depend on sums' order.

    Knows convolutions (masked, grouped, dilated and strided ones too), transposed convolutions,
    linear layers, `ChannelNorm`, `GlobalMean`, ReLU and its kind, GELU, SiLU, sigmoid and tanh.
    Raises `CodecError` naming a layer that it doesn't know, or a setting that it can't compute,
    and when a weight is not finite.
    """
    held = next(module.parameters(), None)
    # Made on the CPU: the grids of weights come from sums in floating point.
    found = copy.deepcopy(module).cpu().double().requires_grad_(False).eval()
    if any(not tensor.isfinite().all() for tensor in found.state_dict().values()):
        raise CodecError("the model has weights that are not finite numbers; it can't be used")
    found = _exact(found, type(module).__name__, {})
    return found if held is None else found.to(held.device)


def _exact(module: nn.Module, name: str, done: dict[int, nn.Module]) -> nn.Module:
    """Return the exact form of `module`; `done` has those of modules met before, by identity."""
    if id(module) not in done:
        done[id(module)] = _replaced(module, name, done)
    return done[id(module)]


def _replaced(module: nn.Module, name: str, done: dict[int, nn.Module]) -> nn.Module:
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
        try:
            return _FORMS[kind](module) if kind in _FORMS else module
        except CodecError as error:
            raise CodecError(f"the layer {name} ({kind.__name__}): {error}") from error
    for part, child in list(module._modules.items()):
        if child is not None:
            module._modules[part] = _exact(child, f"{name}.{part}", done)
    return module


def _known() -> str:
    return ", ".join(sorted(kind.__name__ for kind in (*_FORMS, *_EXACT_ALREADY)))


def _masked(layer: MaskedConv2d) -> ExactConv:
    return ExactConv(layer, layer.masked_weight())


def _gelu_of(layer: nn.GELU) -> Lookup:
    return Lookup(gelu_tanh if layer.approximate == "tanh" else gelu, above=None)


exact_form(nn.Conv2d, ExactConv)
exact_form(MaskedConv2d, _masked)
exact_form(nn.ConvTranspose2d, ExactDeconv)
exact_form(nn.Linear, ExactLinear)
exact_form(ChannelNorm, ExactNorm)
exact_form(GlobalMean, lambda layer: ExactMean())
exact_form(nn.GELU, _gelu_of)
exact_form(nn.SiLU, lambda layer: Lookup(silu, above=None, end=16))
exact_form(nn.Sigmoid, lambda layer: Lookup(sigmoid, above=1.0, end=16))
exact_form(nn.Tanh, lambda layer: Lookup(tanh, above=1.0))
