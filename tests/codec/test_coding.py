"""Pictures to streams and back through the model."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.codec import (
    CCAConfig,
    CCAModel,
    CodecError,
    MismatchError,
    load_model,
    start_as_pyramid,
)
from pipeline.codec.bitstream import read_stream, write_stream
from pipeline.codec.box import box_model
from pipeline.codec.coding import pad
from pipeline.codec.model import Model
from pipeline.codec.picture import read_picture
from tests.codec.conftest import SMALL, make_model

MODEL = make_model(SMALL)


@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 1000))
@settings(deadline=None, max_examples=15)
def test_any_size_comes_back_as_it_was_encoded(h: int, w: int, seed: int) -> None:
    x = torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(seed))
    found = MODEL.decompress(MODEL.compress(x))
    with torch.no_grad():
        output = MODEL(x)
        y_hat = MODEL.coder().encode(output.y).y_hat
        expected = MODEL.synthesis(y_hat.float())[..., :h, :w].clamp(0, 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_bytes_are_what_the_model_estimates(pictures: Path) -> None:
    torch.manual_seed(0)
    model = CCAModel(CCAConfig.tiny()).eval()
    start_as_pyramid(model)
    x = read_picture(sorted((pictures / "kodak").iterdir())[0]).x
    with torch.no_grad():
        likelihoods = model(x).likelihoods
    bits = sum(-float(value.log2().sum()) for value in likelihoods.values())
    words = read_stream(model.compress(x)).tiles[0]
    # Below it where the untrained model meets symbols that it holds for impossible (30 bits):
    # beyond a table's end the escape code is cheaper.
    assert 0.95 * bits < 32 * len(words) < 1.003 * bits


@pytest.mark.parametrize("rate", [0.0, 0.5, 4.5, 9.0])
@pytest.mark.parametrize("size", [(1, 1), (33, 17), (128, 192)])
def test_files_of_a_trained_model_keep_to_its_estimate(
    pictures: Path, trained: Model, size: tuple[int, int], rate: float
) -> None:
    """Within 0.5 %, and the word that a range coder's end takes."""
    for file in sorted((pictures / "kodak").iterdir())[:3]:
        x = read_picture(file).x[..., 40 : 40 + size[0], 30 : 30 + size[1]]
        with torch.no_grad():
            likelihoods = trained(pad(x, trained.config.unit), rate=rate).likelihoods
        bits = sum(-float(value.double().log2().sum()) for value in likelihoods.values())
        words = read_stream(trained.compress(x, rate=rate)).tiles[0]
        assert abs(32 * len(words) - bits) < 0.005 * bits + 40


@pytest.fixture(scope="module")
def trained() -> Model:
    """The model that comes with the package."""
    return load_model(box_model())


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6, -1e6])
def test_flat_and_absurd_pictures_survive(value: float) -> None:
    x = torch.full((1, 3, 70, 90), value)
    assert MODEL.decompress(MODEL.compress(x)).isfinite().all()


def test_pictures_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CodecError, match="not finite"):
        MODEL.compress(torch.full((1, 3, 8, 8), float("nan")))


def test_a_batch_is_refused() -> None:
    with pytest.raises(CodecError, match="one picture"):
        MODEL.compress(torch.rand(2, 3, 8, 8))


def test_another_model_is_refused_by_name() -> None:
    other: CCAModel = make_model(SMALL, seed=5)
    data = MODEL.compress(torch.rand(1, 3, 40, 40))
    with pytest.raises(CodecError, match=MODEL.fingerprint[:16]):
        other.decompress(data)


def test_other_symbols_than_were_encoded_are_noticed() -> None:
    data = MODEL.compress(torch.rand(1, 3, 40, 40))
    stream = read_stream(data)
    forged = write_stream(stream.header, {}, stream.tiles, 12345)
    with pytest.raises(MismatchError, match="other symbols"):
        MODEL.decompress(forged)


def test_other_arithmetic_in_the_decoder_is_a_mismatch_and_never_damage() -> None:
    """However the decoder goes astray: some drifts end in words that mean nothing."""
    model = make_model(SMALL)
    generator = torch.Generator().manual_seed(0)
    streams = [model.compress(torch.rand(1, 3, 40, 56, generator=generator)) for _ in range(20)]
    for name, bias in model.coder()._context.named_buffers():
        if name.startswith("scale_heads") and name.endswith("bias"):
            bias += 0.02 * torch.randn(bias.shape, generator=generator, dtype=bias.dtype)
    for data in streams:
        with pytest.raises(MismatchError, match="other symbols"):
            model.decompress(data)


def test_new_weights_are_used_at_once() -> None:
    model = make_model(SMALL)
    x = torch.rand(1, 3, 64, 64)
    before = model.compress(x)
    with torch.no_grad():
        head: Any = model.context.mean_heads[0]
        head[4].bias.add_(0.3)
    after = model.compress(x)
    assert after != before
    model.decompress(after)
    with pytest.raises(CodecError, match="made with the model"):
        model.decompress(before)


def test_a_model_that_has_coded_can_be_copied_and_sent() -> None:
    x = torch.rand(1, 3, 20, 30)
    data = MODEL.compress(x)
    for other in (copy.deepcopy(MODEL), pickle.loads(pickle.dumps(MODEL))):
        assert other.compress(x) == data
