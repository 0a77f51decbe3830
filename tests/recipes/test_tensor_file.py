"""Tensors are written as the library's readers take them, and hashed on the way."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from recipes.training import tensor_file
from recipes.training.tensor_file import write_tensors

KINDS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
NAMES = st.text(min_size=1, max_size=9)
SHAPES = st.lists(st.integers(0, 5), max_size=3)


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(KINDS), SHAPES, st.booleans())))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_written_is_read_again(
    tmp_path: Path, kinds: dict[str, tuple[torch.dtype, list[int], bool]]
) -> None:
    tensors = {}
    for name, (dtype, shape, turned) in kinds.items():
        values = (torch.randn(shape) * 9).to(dtype)
        tensors[name] = values.mT if turned and values.ndim > 1 else values
    path = tmp_path / "state.safetensors"
    path.unlink(missing_ok=True)
    digest = write_tensors(path, tensors)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_large_tensor_is_written_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "_PART", 1000)
    tensors = {"a": torch.randn(7, 333), "b": torch.arange(2000)}
    digest = write_tensors(tmp_path / "a", tensors)
    assert digest == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    assert torch.equal(load_file(tmp_path / "a")["a"], tensors["a"])


def test_numbers_that_the_format_lacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"phase holds torch\.complex64"):
        write_tensors(tmp_path / "a", {"phase": torch.zeros(2, dtype=torch.complex64)})
