"""Makes Arrow arrays of Python values, without pandas.

`pyarrow.array` imports pandas, to see whether its values are pandas's: a third of a second in each
process. So the buffers are filled here, as Arrow's columnar format lays them out
(https://arrow.apache.org/docs/format/Columnar.html).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def array(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    """Return `values` as an array of type `kind`; None is null.

    Types: booleans, integers, strings, bytes, and lists and structs of such.

    Raises:
        ValueError, OverflowError: a value does not fit the type, or all of them do not.
    """
    values = list(values)
    there = [value is not None for value in values]
    valid = None if all(there) else _bits(there)
    for known, fill in FILLERS:
        if known(kind):
            return fill(values, kind, valid)
    raise ValueError(f"no arrays of {kind} are made here")


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """Return an array of numbers, shape (n,), without a copy where it is contiguous."""
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, data])


def table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return the table of `rows`, each a mapping of the schema's names; absent ones are null."""
    columns = [array((row.get(field.name) for row in rows), field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _booleans(values: list[Any], kind: pa.DataType, valid: pa.Buffer | None) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [valid, _bits(values)])


def _integers(values: list[Any], kind: pa.DataType, valid: pa.Buffer | None) -> pa.Array:
    filled = values if valid is None else [0 if value is None else value for value in values]
    data = pa.py_buffer(np.array(filled, np.dtype(str(kind))))
    return pa.Array.from_buffers(kind, len(values), [valid, data])


def _bytes(values: list[Any], kind: pa.DataType, valid: pa.Buffer | None) -> pa.Array:
    filled = values if valid is None else ["" if value is None else value for value in values]
    data = [value.encode() if isinstance(value, str) else value for value in filled]
    buffers = [valid, _offsets(map(len, data), len(data)), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(kind, len(values), buffers)


def _lists(values: list[Any], kind: pa.DataType, valid: pa.Buffer | None) -> pa.Array:
    filled = values if valid is None else [value or () for value in values]
    inside = array(chain.from_iterable(filled), kind.value_type)
    buffers = [valid, _offsets(map(len, filled), len(filled))]
    return pa.Array.from_buffers(kind, len(values), buffers, children=[inside])


def _structs(values: list[Any], kind: pa.DataType, valid: pa.Buffer | None) -> pa.Array:
    fields = [kind.field(number) for number in range(kind.num_fields)]
    children = [
        array((None if value is None else value.get(field.name) for value in values), field.type)
        for field in fields
    ]
    return pa.Array.from_buffers(kind, len(values), [valid], children=children)


Filler = Callable[[list[Any], pa.DataType, "pa.Buffer | None"], pa.Array]
FILLERS: tuple[tuple[Callable[[pa.DataType], bool], Filler], ...] = (
    (pa.types.is_boolean, _booleans),
    (pa.types.is_integer, _integers),
    (pa.types.is_string, _bytes),
    (pa.types.is_binary, _bytes),
    (pa.types.is_list, _lists),
    (pa.types.is_struct, _structs),
)


def _bits(values: Sequence[Any]) -> pa.Buffer:
    """Return a bit for each value, the first in the lowest place."""
    return pa.py_buffer(np.packbits(np.array(values, bool), bitorder="little"))


def _offsets(sizes: Iterable[int], count: int) -> pa.Buffer:
    """Return where each value starts, and where the last one ends."""
    ends = np.cumsum(np.fromiter(sizes, np.int64, count))
    if count and ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError("more than 2 GiB in one column")
    return pa.py_buffer(np.concatenate([[0], ends]).astype(np.int32))


def as_numpy(values: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return numbers or booleans without nulls as an array of shape (n,), one chunk uncopied."""
    if isinstance(values, pa.ChunkedArray):
        chunks = [as_numpy(chunk) for chunk in values.chunks] or [as_numpy(array([], values.type))]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    start, stop = values.offset, values.offset + len(values)
    data = values.buffers()[1] if len(values) else b""
    if pa.types.is_boolean(values.type):
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        return bits[start:stop].astype(bool)
    return np.frombuffer(data, np.dtype(str(values.type)))[start:stop]
