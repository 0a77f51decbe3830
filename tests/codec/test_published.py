"""Checkpoints of the paper's authors: the one-to-one mapping, older names, malformed files."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import AuxiliaryEntropyModel, CCAModel, CodecError
from pipeline.codec.architectures.cca.published import (
    from_published,
    published_names,
    read_published,
)
from tests.codec.conftest import SMALL, make_model


def _state(model: CCAModel, auxiliary: AuxiliaryEntropyModel | None = None) -> dict:
    names = published_names(model)
    state = {names[n]: p.detach() for n, p in model.named_parameters()}
    if auxiliary is not None:
        names = published_names(auxiliary)
        state |= {names[n]: p.detach() for n, p in auxiliary.named_parameters()}
    return state


def _older(state: dict) -> dict:
    """The names and baggage that the authors' own files have."""
    renamed = {}
    for name, tensor in state.items():
        for new, old in (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor")):
            if "entropy_bottleneck" in name:
                name = name.replace(f".{new}", f".{old}")
        renamed[f"module.{name}"] = tensor
    for part in ("z_entropy_bottleneck.", "gaussian_conditional.", "aux_entropymodel."
                 "y_entropy_bottleneck."):  # fmt: skip
        renamed[f"module.{part}_quantized_cdf"] = torch.ones(4, 7, dtype=torch.int32)
        renamed[f"module.{part}_offset"] = torch.zeros(0, dtype=torch.int32)
        renamed[f"module.{part}likelihood_lower_bound.bound"] = torch.tensor([0.5])
    renamed["module.gaussian_conditional.lower_bound_scale.bound"] = torch.tensor([9.0])
    renamed["module.z_entropy_bottleneck.target"] = torch.zeros(3)
    return renamed


def test_all_published_names_and_shapes_map_one_to_one(shared_data: Path) -> None:
    listing = json.loads((shared_data / "golden" / "cca-paper-parameters.json").read_text())
    with torch.device("meta"):
        modules = (CCAModel(), AuxiliaryEntropyModel())
    ours = []
    for module in modules:
        names = published_names(module)
        ours += [(names[name], list(p.shape)) for name, p in module.named_parameters()]
    assert len(ours) == len(dict(ours)) == 2292
    theirs = listing["parameters"]
    assert all(theirs[name] == shape for name, shape in ours)
    derived = theirs.keys() - dict(ours).keys()
    assert len(derived) == 24


def test_older_names_prefix_and_derived_buffers(
    model: CCAModel, auxiliary: AuxiliaryEntropyModel, tmp_path: Path
) -> None:
    file = tmp_path / "published.pth.tar"
    content = {"epoch": 3, "state_dict": _older(_state(model, auxiliary)), "loss": 1.0}
    torch.save(content, file)
    published = read_published(file)
    assert published.model.fingerprint == model.fingerprint
    assert published.auxiliary is not None
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = model(x), published.model(x)
        assert torch.equal(found.x_hat, expected.x_hat)
        ours = auxiliary(expected.y, expected.hyper)
        theirs = published.auxiliary(found.y, found.hyper)
    assert torch.equal(ours.likelihoods_y, theirs.likelihoods_y)


def test_auxiliary_may_be_missing_as_a_whole_only(
    model: CCAModel, auxiliary: AuxiliaryEntropyModel
) -> None:
    assert from_published(_state(model)).auxiliary is None
    partly = _state(model, auxiliary)
    partly.pop("aux_entropymodel.lrp_transforms.0.0.bias")
    with pytest.raises(CodecError, match=r"lacks aux_entropymodel\.lrp_transforms\.0\.0\.bias"):
        from_published(partly)


def _break(state: dict, how: str) -> dict:
    if how == "missing":
        state.pop("g_s.blocks.0.0.beta")
    elif how == "unknown":
        state["g_a.extra.weight"] = torch.zeros(1)
    elif how == "shape":
        state["h_a.0.bias"] = torch.zeros(3)
    elif how == "first":
        state.pop("g_a.down.3.weight")
    elif how == "flat":
        state["g_a.down.1.weight"] = torch.zeros(5)
    elif how == "integer":
        state["h_a.0.bias"] = state["h_a.0.bias"].int()
    elif how == "empty":
        state = {}
    elif how == "foreign":
        state = {"conv1.weight": torch.zeros(3, 3, 3, 3)}
    return state


@pytest.mark.parametrize(
    "how", ["missing", "unknown", "shape", "first", "flat", "integer", "empty", "foreign"]
)
def test_another_architecture_is_refused(model: CCAModel, how: str, tmp_path: Path) -> None:
    file = tmp_path / "other.pth.tar"
    torch.save({"state_dict": _break(_state(model), how)}, file)
    with pytest.raises(CodecError, match=r"architecture|state_dict"):
        read_published(file)


class _Bomb:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("executed"),))


def test_no_pickle_is_ever_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in {
        "zip": {"state_dict": _Bomb()}, "raw": _Bomb(), "key": {"state_dict": {"a": _Bomb()}}
    }.items():  # fmt: skip
        file = tmp_path / name
        if name == "raw":
            file.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, file)
        with pytest.raises(CodecError, match="run code"):
            read_published(file)
    assert not (tmp_path / "executed").exists()


def test_malformed_checkpoints_give_one_clear_error(model: CCAModel, tmp_path: Path) -> None:
    good = tmp_path / "good"
    torch.save({"state_dict": _state(model)}, good)
    data = good.read_bytes()
    for i, bad in enumerate(
        [b"", b"text", data[:1000], data[: len(data) // 2], data[1000:], b"\x80\x02" * 40]
    ):
        file = tmp_path / f"bad{i}"
        file.write_bytes(bad)
        with pytest.raises(CodecError, match="not a checkpoint"):
            read_published(file)
    for content in ([1, 2], {"state_dict": [1]}, {"state_dict": {"a": 1}}, torch.zeros(3)):
        torch.save(content, good)
        with pytest.raises(CodecError):
            read_published(good)


def test_no_more_memory_is_taken_than_the_file_has_bytes(model: CCAModel, tmp_path: Path) -> None:
    """A few bytes that are repeated, nothing at all, or zeros packed a thousandfold."""
    state = _state(model)
    first, file = next(iter(state)), tmp_path / "large.pth.tar"
    for weight in (
        torch.zeros(1).expand(10**9),
        torch.zeros(3).to_sparse(),
        torch.zeros(3, device="meta"),
    ):
        torch.save({"state_dict": state | {first: weight}}, file)
        with pytest.raises(CodecError, match=r"claims weights|no tensor"):
            read_published(file)
    torch.save({"state_dict": {"a": torch.zeros(10**6)}}, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(file, "w", 8) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(CodecError, match="unpack"):
        read_published(file)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None, database=None)
def test_mutated_checkpoints_give_a_model_or_one_sentence(edits: list[tuple[int, int]]) -> None:
    data = bytearray(_checkpoint())
    for place, value in edits:
        # Half of the edits hit the pickle and the directory, the ends of the archive.
        at = place % len(data) if value % 2 else place % 2000 - 1000
        data[at] = value
    with tempfile.NamedTemporaryFile(suffix=".pth.tar") as file:
        file.write(data)
        file.flush()
        try:
            read_published(Path(file.name))
        except CodecError as error:
            sentence = str(error)
            assert "\n" not in sentence


@cache
def _checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": _state(make_model(SMALL))}, file)
    return file.getvalue()
