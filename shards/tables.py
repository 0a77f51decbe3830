"""Reads a Parquet table in this thread alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq


def read_rows(stream: IO[bytes], columns: Sequence[str] | None = None) -> pa.Table:
    """Return the Parquet table in `stream`, or its `columns` alone.

    Raises `pa.ArrowException` or OSError when it is no such table.
    """
    # `pq.read_table` reads ahead in threads, which abort the process when they still hold a file
    # of Python's as it exits.
    file = pq.ParquetFile(stream, pre_buffer=False)
    return file.read(columns=None if columns is None else list(columns), use_threads=False)
