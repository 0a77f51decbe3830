"""Writes tensors to a safetensors file and hashes them meanwhile, without reading them again.

The format is the one of https://github.com/huggingface/safetensors#format: the length of a JSON
header, the header, then each tensor's values, little-endian, one after the other.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
# Bytes that are written and hashed at once: each waits for the slower of the two.
_PART = 2**24


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write `tensors` to the new file `path`; return the hex SHA-256 of the file.

    Raises `TypeError` for a kind of numbers that the format, or this writer, doesn't have.
    """
    # Wide numbers first, so that every tensor lies at a multiple of its numbers' width.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    digest = hashlib.sha256()
    with path.open("xb") as file, ThreadPoolExecutor(1) as hasher:
        hashed: Future[None] | None = None
        for parts in _together(_parts(names, tensors)):
            # Some parts are hashed while the next are written: both work outside Python's lock.
            if hashed is not None:
                hashed.result()
            hashed = hasher.submit(_hash, digest, parts)
            file.writelines(parts)
    return digest.hexdigest()


def _hash(digest: Any, parts: list[memoryview]) -> None:
    for part in parts:
        digest.update(part)


def _together(parts: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """Yield the `parts` in lists of about `_PART` bytes: a model has thousands of small tensors."""
    held: list[memoryview] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _PART:
            yield held
            held, size = [], 0
    yield held


def _parts(names: list[str], tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """Yield the bytes of the file, in parts of at most `_PART` bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise TypeError(f"{name} holds {tensor.dtype}, which can't be stored")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    yield memoryview(len(written).to_bytes(8, "little") + written)
    for name in names:
        values = _bytes(tensors[name])
        for start in range(0, len(values), _PART):
            yield values[start : start + _PART]


def _bytes(tensor: Tensor) -> memoryview:
    if sys.byteorder == "big":
        raise TypeError("tensors can't be stored on a machine with this order of bytes")
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(values.view(torch.uint8).numpy().data)
