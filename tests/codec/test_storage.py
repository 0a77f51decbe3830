"""Model files: what is written is what is read, and what isn't ours is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.codec import (
    AuxiliaryEntropyModel,
    CCAConfig,
    CCAModel,
    CodecError,
    load_auxiliary,
    load_model,
    round_to_half,
    save_model,
)


def test_model_comes_back_as_it_was(
    model: CCAModel, auxiliary: AuxiliaryEntropyModel, tmp_path: Path
) -> None:
    info = {"name": "base", "rate_weight": 0.85, "step": 12}
    file = save_model(model, tmp_path / "run", info, auxiliary)
    assert file == tmp_path / "run" / "model.safetensors"
    for path in (tmp_path / "run", file):
        found = load_model(path)
        assert not found.training
        assert found.config == model.config
        assert found.info.to_dict() == info
        assert found.fingerprint == model.fingerprint
    again = load_auxiliary(file)
    assert again is not None
    for name, tensor in auxiliary.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["model.safetensors"]


def test_half_precision_halves_a_file_and_keeps_every_number(
    model: CCAModel, tmp_path: Path
) -> None:
    whole = save_model(model, tmp_path / "whole.safetensors")
    with pytest.raises(CodecError, match="float16"):
        save_model(model, tmp_path / "half.safetensors", half=True)
    assert not (tmp_path / "half.safetensors").exists()
    round_to_half(model)
    half = save_model(model, tmp_path / "half.safetensors", half=True)
    # Names and shapes are as long in both.
    assert whole.stat().st_size - half.stat().st_size == pytest.approx(
        sum(2 * tensor.numel() for tensor in model.state_dict().values()), rel=0.01
    )
    found = load_model(half)
    assert found.fingerprint == model.fingerprint
    assert all(tensor.dtype == torch.float32 for tensor in found.state_dict().values())


def test_a_weight_beyond_half_precision_is_named_and_none_is_rounded(model: CCAModel) -> None:
    model = deepcopy(model)
    with torch.no_grad():
        model.synthesis.last.bias[0] = 1e5
    before = model.fingerprint
    with pytest.raises(CodecError, match=r"synthesis\.last\.bias has a weight beyond"):
        round_to_half(model)
    assert model.fingerprint == before


def test_opening_a_model_does_not_wait_for_torch_s_compiler(
    model: CCAModel, auxiliary: AuxiliaryEntropyModel, tmp_path: Path
) -> None:
    file = save_model(model, tmp_path / "model.safetensors", {}, auxiliary)
    code = (
        # The oldest torch needs sympy for any check of its own.
        "import sys, torch; torch._check(True); before = set(sys.modules);"
        "from pipeline.codec import load_auxiliary, load_model;"
        "load_model(sys.argv[1]), load_auxiliary(sys.argv[1]);"
        "print(*({'torch._dynamo', 'sympy'} & set(sys.modules) - before))"
    )
    words = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_loaded_model_can_be_trained_on(model: CCAModel, tmp_path: Path) -> None:
    found = load_model(save_model(model, tmp_path / "a.safetensors")).train()
    found(torch.rand(1, 3, 64, 64)).x_hat.sum().backward()
    assert found.analysis.last.weight.grad is not None
    assert load_auxiliary(tmp_path / "a.safetensors") is None


def test_fingerprint_follows_the_weights(model: CCAModel) -> None:
    before = model.fingerprint
    with torch.no_grad():
        model.synthesis.last.bias.add_(1)
    assert model.fingerprint != before


def _rewrite(file: Path, **metadata: str) -> None:
    tensors = load_file(file)
    plain = {"format": "cca-pipeline model", "version": "1", "info": "{}"}
    plain["config"] = json.dumps(CCAConfig.tiny().to_dict())
    save_file(tensors, file, plain | metadata)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"format": "other"}, "no model of this project"),
        ({"version": "3"}, "needs a program that reads version 3"),
        ({"version": "2"}, "scales belong to version 2"),
        ({"scales": '{"a": [1, 11]}'}, "scales belong to version 2"),
        ({"version": "2", "scales": "{}"}, "no fingerprint that vouches"),
        ({"config": "{"}, "broken description"),
        ({"config": "[]"}, "broken description"),
        ({"config": '{"depth": 3}'}, "depth"),
        ({"config": '{"latent_channels": 65000}'}, "another architecture"),
        ({}, "another architecture"),
    ],
)
def test_other_files_are_refused(
    model: CCAModel, tmp_path: Path, metadata: dict[str, str], words: str
) -> None:
    file = save_model(model, tmp_path / "a.safetensors")
    _rewrite(file, **metadata)
    with pytest.raises(CodecError, match=words):
        load_model(file)


def test_missing_and_broken_files_are_refused(model: CCAModel, tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="no model in"):
        load_model(tmp_path)
    file = save_model(model, tmp_path / "a.safetensors")
    data = file.read_bytes()
    for bad in (b"", b"hello", data[:100], data[:-1], data[8:]):
        file.write_bytes(bad)
        with pytest.raises(CodecError, match="not a model"):
            load_model(file)


def test_a_loaded_model_owns_its_weights(
    model: CCAModel, auxiliary: AuxiliaryEntropyModel, tmp_path: Path
) -> None:
    """What is done to the file afterwards, in place, reaches neither of the two models."""
    file = save_model(model, tmp_path / "a.safetensors", {}, auxiliary)
    found, beside = load_model(file), load_auxiliary(file)
    assert beside is not None
    with file.open("r+b") as raw:
        raw.write(b"\0" * file.stat().st_size)
        raw.truncate(0)
    for loaded, original in ((found, model), (beside, auxiliary)):
        for name, tensor in original.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.parametrize("half", [False, True])
def test_a_flipped_bit_of_the_weights_is_found(model: CCAModel, tmp_path: Path, half: bool) -> None:
    if half:
        model = deepcopy(model)
        round_to_half(model)
    file = save_model(model, tmp_path / "a.safetensors", half=half)
    intact = file.read_bytes()
    start = 8 + int.from_bytes(intact[:8], "little")
    draw = random.Random(half)
    for _ in range(5):
        data = bytearray(intact)
        data[draw.randrange(start, len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
        with pytest.raises(CodecError, match="is damaged: its weights"):
            load_model(file)


def test_a_failed_save_leaves_the_old_model(
    model: CCAModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save_model(model, tmp_path / "a.safetensors")
    before = file.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(model, file, {"step": 2})
    assert file.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
