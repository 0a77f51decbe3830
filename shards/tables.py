"""Reads Parquet tables, which may be damaged, in this thread alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common.pictures.errors import first_line


@contextmanager
def reading_table() -> Iterator[None]:
    """Turn what pyarrow makes of bytes that are no table, of whatever kind, into `pa.ArrowInvalid`.

    An OSError of the system's, which has a number, is none of them: the file can't be read.
    """
    try:
        yield
    except pa.ArrowException:
        raise
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise pa.ArrowInvalid(first_line(error)) from error


def checked(table: pa.Table) -> pa.Table:
    """Return `table`; raises `pa.ArrowInvalid` where lengths don't fit, or a text is no UTF-8."""
    table.validate(full=True)
    return table


def read_rows(stream: IO[bytes], columns: Sequence[str] | None = None) -> pa.Table:
    """Return the Parquet table in `stream`, or its `columns` alone.

    Raises `pa.ArrowException` when it is no such table.
    """
    # `pq.read_table` reads ahead in threads, which abort the process when they still hold a file
    # of Python's as it exits.
    with reading_table():
        file = pq.ParquetFile(stream, pre_buffer=False)
        wanted = None if columns is None else list(columns)
        return checked(file.read(columns=wanted, use_threads=False))
