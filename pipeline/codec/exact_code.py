"""Checks the code between exact layers, whose results must be the same on any device.

`exact_copy` replaces a network's layers and leaves its Python code as it is. Sums, products of
matrices and functions such as exp give different results from device to device, so code that the
decoder repeats must not use them. It may use elementwise +, -, *, /, sqrt and rounding, which
IEEE 754 defines to the last bit, comparisons, and operations that move numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.codec.errors import CodecError
from pipeline.codec.exact_layers import inside_layer

_ELEMENTWISE = """
    abs neg sign sgn sqrt relu leaky_relu _prelu_kernel hardtanh clamp clamp_min clamp_max clip
    round floor ceil trunc frac minimum maximum fmin fmax where masked_fill copysign
    eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_xor logical_not
    bitwise_and bitwise_or bitwise_xor bitwise_not mul square threshold
"""
_ORDERLESS = "amax amin max min argmax argmin any all sort argsort topk max_pool2d_with_indices"
_MOVING = """
    _to_copy copy clone contiguous detach alias lift lift_fresh lift_fresh_copy view _unsafe_view
    reshape _reshape_alias view_as_real as_strided unsqueeze squeeze expand repeat permute
    transpose t movedim flatten unflatten slice select split split_with_sizes unbind chunk narrow
    diagonal cat stack index index_select gather masked_select take index_put slice_scatter
    select_scatter scatter flip roll constant_pad_nd reflection_pad2d replication_pad2d
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle upsample_nearest2d
    unfold im2col tril triu nonzero repeat_interleave
"""
_MAKING = """
    empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros ones
    ones_like new_ones full full_like new_full fill zero arange eye scalar_tensor set
    _local_scalar_dense
"""
_ALLOWED = frozenset((_ELEMENTWISE + _ORDERLESS + _MOVING + _MAKING).split())
# Exact where the numbers are integers.
_OF_INTEGERS = frozenset(
    {"sum", "cumsum", "prod", "bincount", "count_nonzero", "remainder", "floor_divide"}
)


@contextmanager
def only_exact(what: str) -> Iterator[None]:
    """Raise `CodecError` for an inexact operation inside the block and outside of exact layers.

    The error calls the code in the block `what`.
    """
    with _Watch(what):
        yield


# torch gives the methods of TorchDispatchMode no types.
class _Watch(TorchDispatchMode):
    def __init__(self, what: str) -> None:
        # Its initialiser has no types, either.
        super().__init__()  # type: ignore[no-untyped-call]
        self.what = what

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch loads its compiler at the first operation, which takes seconds.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not inside_layer():
            # In inference mode, composite operations arrive whole; only their parts are known.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if not inside_layer() and not _is_exact(func, args, kwargs):
            raise CodecError(
                f"{self.what} does `{_name(func)}` between its layers, which comes out differently"
                " from device to device, so its files might not decode elsewhere: leave it to a"
                " layer that has an exact form (docs/codec.md)"
            )
        return func(*args, **kwargs)


def _name(func: Any) -> str:
    """Return an operation's name, without the underscore of in-place ones: `add` for aten::add_."""
    name = str(func._schema.name).split("::")[-1]
    return name if name.startswith("__") or not name.endswith("_") else name[:-1]


def _is_exact(func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
    name = _name(func)
    if name in _OF_INTEGERS:
        return _whole(args[0])
    if name in ("add", "sub", "rsub"):
        # With any other factor, some processors fuse multiplication and addition, others do not.
        return bool(abs(kwargs.get("alpha", args[2] if len(args) > 2 else 1)) == 1)
    if name == "div":
        # CUDA divides by a Python number by multiplying with its reciprocal.
        return isinstance(args[1], Tensor) or _power_of_two(args[1])
    if name == "pow":
        return not isinstance(args[1], Tensor) and bool(args[1] == 2)
    if name == "index_put":
        return not kwargs.get("accumulate", args[3] if len(args) > 3 else False)
    if name == "scatter":
        return kwargs.get("reduce") is None and len(args) < 5
    return name in _ALLOWED


def _whole(x: Tensor) -> bool:
    return not (x.dtype.is_floating_point or x.dtype.is_complex)


def _power_of_two(number: Any) -> bool:
    return abs(math.frexp(number)[0]) == 0.5
