"""Values of tables, as JSON holds them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from shards.sources.base import clean_text


def has_bytes(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are bytes, or have some inside: JSON has nothing for them."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind):
        return True
    return any(has_bytes(kind.field(number).type) for number in range(kind.num_fields))


def json_value(value: Any) -> Any:
    """Return a value of a table as JSON holds it.

    Numbers that are none (NaN, infinities) become null, times what ISO 8601 writes, other kinds
    their text.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(str(key)): json_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(one) for one in value]
    if hasattr(value, "tolist"):  # NumPy's
        return json_value(value.tolist())
    return value.isoformat() if hasattr(value, "isoformat") else clean_text(str(value))
