"""Arrow's arrays made without pandas: the same as pyarrow's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from shards.arrays import array, as_numpy, numbers, table
from shards.samples.sample import SIDECAR
from shards.sources.base import SIBLING
from tests.shards.making import jpeg

SIBLINGS = st.lists(
    st.fixed_dictionaries(
        {
            "ext": st.text(st.characters(codec="utf-8")),
            "location": st.binary(),
            "offset": st.integers(-(2**63), 2**63 - 1),
            "size": st.none() | st.integers(0, 9),
        }
    )
)


@given(st.lists(st.none() | SIBLINGS), st.lists(st.none() | st.binary()))
def test_arrays_are_those_of_pyarrow(siblings: list[object], found: list[object]) -> None:
    for values, kind in ((siblings, pa.list_(SIBLING)), (found, pa.binary())):
        assert array(values, kind).equals(pa.array(values, kind))


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_numbers_are_those_of_numpy(values: list[int]) -> None:
    every_second = np.array(values, np.uint64)[::2]
    assert numbers(every_second).to_pylist() == values[::2]


@given(st.lists(st.lists(st.booleans())), st.integers(0, 9))
def test_chunks_become_one_array(chunks: list[list[bool]], start: int) -> None:
    flat = [value for chunk in chunks for value in chunk]
    for kind in (pa.bool_(), pa.int32()):
        values = [array(map(int, chunk), kind) for chunk in chunks]
        chunked = pa.chunked_array(values, kind)
        assert as_numpy(chunked).tolist() == flat
        assert as_numpy(chunked.slice(start)).tolist() == flat[start:]


def test_a_table_has_the_schema_with_its_metadata() -> None:
    schema = SIDECAR.with_metadata({"a": "b"})
    made = table([{"key": "x", "size": 3}, {}], schema)
    assert made.schema.equals(schema, check_metadata=True)
    assert made["key"].to_pylist() == ["x", None]
    assert table([], schema).num_rows == 0


def test_making_shards_of_pictures_loads_no_library_of_tables(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    code = (
        "import sys; from shards.options import Options; from shards.run import shard\n"
        f"shard([{str(tmp_path)!r}], {str(tmp_path / 'd')!r}, Options(min_side=1), workers=1)\n"
        "print(*sys.modules.keys() & {'pandas', 'datasets', 'torch', 'scipy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
