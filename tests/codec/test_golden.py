"""The network against recorded numbers: the reference port's, and our own smaller instance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.codec import load_auxiliary, load_model
from pipeline.codec.architectures.cca.published import from_published
from tests.codec.reference import (
    GOLDEN,
    gradient_norms,
    losses,
    noise_of,
    relative,
    tensors,
)

TOLERANCE = 1e-4


class Recorded:
    """A golden instance: models, tensors and numbers."""

    def __init__(self, model, auxiliary, recorded, evaluation, training, norms) -> None:
        self.model, self.auxiliary, self.recorded = model, auxiliary, recorded
        self.evaluation, self.training, self.norms = evaluation, training, norms
        self.x = recorded["x"].float() / 255


def _reference(shared: Path) -> Recorded:
    folder = shared / "golden"
    weights = load_file(folder / "cca-small.weights.safetensors")
    published = from_published({name: tensor.float() for name, tensor in weights.items()})
    numbers = json.loads((folder / "cca-small.json").read_text())
    return Recorded(
        published.model, published.auxiliary, load_file(folder / "cca-small.tensors.safetensors"),
        numbers["evaluation"], numbers["training"],
        numbers["training_gradient_norms_of_loss_published"],
    )  # fmt: skip


def _ours() -> Recorded:
    numbers = json.loads((GOLDEN / "numbers.json").read_text())
    return Recorded(
        load_model(GOLDEN), load_auxiliary(GOLDEN), load_file(GOLDEN / "tensors.safetensors"),
        numbers["evaluation"], numbers["training"], numbers["gradient_norms"],
    )  # fmt: skip


@pytest.fixture(params=["reference", "ours"])
def golden(request: pytest.FixtureRequest) -> Recorded:
    if request.param == "ours":
        return _ours()
    return _reference(request.getfixturevalue("shared_data"))


def test_evaluation_is_reproduced(golden: Recorded) -> None:
    with torch.no_grad():
        output = golden.model(golden.x)
        auxiliary = golden.auxiliary(output.y, output.hyper)
    for name, tensor in tensors(output, auxiliary).items():
        assert relative(tensor, golden.recorded[name]) < TOLERANCE, name
    found = losses(golden.x, output, auxiliary)
    if "quantile_loss" in golden.evaluation:
        found["quantile_loss"] = golden.model.quantile_loss() + golden.auxiliary.quantile_loss()
    assert found.keys() == golden.evaluation.keys()
    for name, value in found.items():
        assert relative(value, golden.evaluation[name]) < TOLERANCE, name


def test_training_pass_is_reproduced_with_its_gradients(golden: Recorded) -> None:
    noise = noise_of(golden.recorded)
    output = golden.model.train()(golden.x, noise)
    auxiliary = golden.auxiliary.train()(output.y, output.hyper, noise)
    for name, tensor in tensors(output, auxiliary).items():
        if f"train_{name}" in golden.recorded:
            assert relative(tensor, golden.recorded[f"train_{name}"]) < TOLERANCE, name
    found = losses(golden.x, output, auxiliary)
    assert found.keys() == golden.training.keys()
    for name, value in found.items():
        assert relative(value, golden.training[name]) < TOLERANCE, name
    found["loss_published"].backward()
    for name, norm in gradient_norms(golden.model, golden.auxiliary, list(golden.norms)).items():
        assert relative(norm, golden.norms[name]) < TOLERANCE, name


def test_recorded_stream_still_decodes_to_the_same_picture() -> None:
    golden = _ours()
    stream = (GOLDEN / "picture.cca").read_bytes()
    x = golden.x[:1, :, :50, :101]
    # The analysis may round otherwise on another machine, so the bytes need not be the same.
    assert len(golden.model.compress(x)) == pytest.approx(len(stream), rel=0.01)
    with torch.no_grad():
        expected = golden.model(x).x_hat.clamp(0, 1)
    assert (golden.model.decompress(stream) - expected).abs().max() < 1e-3


def test_our_golden_files_are_small() -> None:
    assert sum(file.stat().st_size for file in GOLDEN.iterdir() if file.is_file()) < 2_000_000
