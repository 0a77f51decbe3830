"""The small architecture: forward and streams agree, at all rates, sizes and numbers of threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pipeline.codec import CodecError, architectures, load_model, save_model
from pipeline.codec.architectures.small import SmallConfig, SmallModel, start_as_transform
from pipeline.codec.bitstream import read_stream
from pipeline.codec.coding import TensorSource, compress, decompress

WEIGHTS = (16.0, 4.0, 1.0, 0.25)
CONFIG = replace(SmallConfig.tiny(), rate_weights=WEIGHTS)


def _shaken(config: SmallConfig = CONFIG) -> SmallModel:
    """A model whose every parameter matters: nothing is at zero any more."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallModel(config)
        start_as_transform(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.03)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> SmallModel:
    return _shaken()


def _picture(height: int, width: int) -> torch.Tensor:
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def _psnr(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(-10 * (x - y).square().mean().log10())


@pytest.mark.parametrize("rate", [0.0, 1.7, 3.0])
def test_a_stream_gives_what_a_pass_gives(model: SmallModel, rate: float) -> None:
    x = _picture(128, 192)
    with torch.no_grad():
        output = model(x, rate=rate)
    data = model.compress(x, rate)
    # A value at a tie may round the other way in float32.
    assert _psnr(model.decompress(data), output.x_hat.clamp(0, 1)) > 45
    bits = sum(float(-part.log2().sum()) for part in output.likelihoods.values())
    assert 8 * len(data) == pytest.approx(bits, rel=0.05, abs=800)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (63, 65), (130, 70)])
def test_pictures_of_any_size_come_back(model: SmallModel, height: int, width: int) -> None:
    x = _picture(height, width)
    assert model.decompress(model.compress(x)).shape == x.shape


def test_a_model_may_start_as_a_transform_codec() -> None:
    model, x = SmallModel(SmallConfig(rate_weights=WEIGHTS)).eval(), _picture(128, 128)
    start_as_transform(model)
    streams = [model.compress(x, rate) for rate in (0.0, 1.5, 3.0)]
    assert sorted(map(len, streams)) == list(map(len, streams))
    assert _psnr(model.decompress(streams[-1]), x) > 35


def test_any_number_of_threads_gives_the_same_words(model: SmallModel) -> None:
    x, before, found = _picture(192, 256), torch.get_num_threads(), []
    with torch.no_grad():
        y = model.analyse(x, 2.0)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tile = model.coder().encode(y, rate=2.0)
            found.append((tile.words.tobytes(), tile.y_hat))
    finally:
        torch.set_num_threads(before)
    assert all(words == found[0][0] and torch.equal(y, found[0][1]) for words, y in found[1:])


def test_tiles_hardly_differ_from_the_whole(model: SmallModel) -> None:
    x = _picture(590, 620)
    # Enough for tiles of 256 pixels and what the transforms see around them.
    memory = CONFIG.bytes_per_pixel * (256 + 2 * CONFIG.margin) ** 2
    tiled = compress(model, TensorSource(x), max_memory=memory, rate=3.0)
    assert read_stream(tiled).header.tile
    found, whole = decompress(model, tiled), decompress(model, model.compress(x, 3.0))
    assert found.shape == x.shape
    assert _psnr(found, whole) > 40


def test_every_parameter_gets_a_gradient() -> None:
    model = _shaken().train()
    output = model(torch.rand(2, 3, 64, 64), rate=torch.tensor([0.4, 2.5]))
    bits = sum(-part.log2().sum() for part in output.likelihoods.values())
    (output.x_hat.square().sum() + bits + model.quantile_loss()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_noise_of_the_stated_shapes_decides_a_training_pass() -> None:
    model, x = _shaken().train(), torch.rand(2, 3, 128, 128)
    noise = {name: torch.rand(2, *shape) - 0.5 for name, shape in CONFIG.noise_shapes(128).items()}
    first, second = (model(x, noise, 1.0).likelihoods for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in ("y", "z"))


def test_a_file_keeps_the_model(model: SmallModel, tmp_path: Path) -> None:
    found = load_model(save_model(model, tmp_path))
    assert isinstance(found, SmallModel)
    assert found.fingerprint == model.fingerprint
    x = _picture(64, 64)
    assert found.compress(x, 1.0) == model.compress(x, 1.0)


def test_a_model_with_a_single_rate_codes() -> None:
    model, x = _shaken(SmallConfig.tiny()), _picture(64, 96)
    assert model.decompress(model.compress(x)).shape == x.shape
    with pytest.raises(CodecError, match="single rate"):
        model.compress(x, 1.0)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"latent_channels": 4}, "slice empty"),
        ({"width": 0}, "width"),
        ({"context_channels": 33}, "even"),
        ({"slice_exponent": "k"}, "slice_exponent"),
        ({"colour": 3}, "colour"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, object], match: str) -> None:
    with pytest.raises(CodecError, match=match):
        architectures.config_of({"architecture": "small", **fields})
