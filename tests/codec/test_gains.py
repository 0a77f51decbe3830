"""Models with a range of rates: gains between the trained rates, streams at any of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.codec import CCAConfig, CCAModel, CodecError, load_model, save_model
from pipeline.codec.bitstream import read_header, read_stream, write_stream
from pipeline.codec.coding import TensorSource, compress, decode_stream
from tests.codec.conftest import SMALL, make_model
from tests.codec.test_cli import _run
from tests.codec.test_tiles import LITTLE

WEIGHTS = (15.0, 3.5, 0.3)


@pytest.fixture(scope="module")
def ranged() -> CCAModel:
    """A model for three rates whose gains all differ."""
    model = make_model(replace(SMALL, rate_weights=WEIGHTS))
    assert model.gains is not None
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for logs in model.gains.parameters():
            logs.add_(torch.randn(logs.shape, generator=generator) * 0.3)
    return model


def gains_at(model: CCAModel, rate: float) -> list[torch.Tensor]:
    assert model.gains is not None
    return [gain.flatten() for gain in model.gains(torch.tensor([rate]))]


def test_a_model_with_one_rate_has_no_gains_and_says_nothing_of_rates(model: CCAModel) -> None:
    assert not [name for name, _ in model.named_parameters() if "gains" in name]
    assert "rate_weights" not in model.config.to_dict()
    assert read_header(model.compress(torch.rand(1, 3, 64, 64))).rate is None


def test_trained_rates_are_met_exactly_and_others_lie_geometrically_between(
    ranged: CCAModel,
) -> None:
    assert ranged.gains is not None
    vectors = (ranged.gains.y, ranged.gains.z, ranged.gains.y_inverse, ranged.gains.z_inverse)
    for k in range(3):
        for found, logs in zip(gains_at(ranged, k), vectors, strict=True):
            assert torch.equal(found, logs[k].exp())
    for share in (0.25, 0.9):
        low, between, high = (gains_at(ranged, rate) for rate in (1, 1 + share, 2))
        for below, found, above in zip(low, between, high, strict=True):
            torch.testing.assert_close(found, below ** (1 - share) * above**share)
    assert ranged.config.rate_weight_at(1) == 3.5
    assert ranged.config.rate_weight_at(0.5) == pytest.approx((15 * 3.5) ** 0.5)


def test_a_gradient_reaches_the_rates_of_the_batch_and_no_others(ranged: CCAModel) -> None:
    config = replace(SMALL, rate_weights=(15, 7, 3.5, 1, 0.3))
    model = make_model(config).train()
    assert model.gains is not None
    output = model(torch.rand(2, 3, 64, 64), rate=torch.tensor([1.0, 3.0]))
    bits = sum(-part.log2().sum() for part in output.likelihoods.values())
    (output.x_hat.square().sum() + bits).backward()
    for name, logs in model.gains.named_parameters():
        reached = logs.grad.abs().sum(1) > 0
        assert reached.tolist() == [False, True, False, True, False], name
    model.zero_grad()
    model(torch.rand(1, 3, 64, 64), rate=2.5).x_hat.sum().backward()
    assert (model.gains.y_inverse.grad.abs().sum(1) > 0).tolist() == [False] * 2 + [True] * 2 + [
        False
    ]


def test_streams_at_any_rate_decode_to_what_was_encoded(ranged: CCAModel) -> None:
    draw = random.Random(3)
    x = torch.rand(1, 3, 70, 130, generator=torch.Generator().manual_seed(5))
    for rate in (0, 1, 2, *(draw.uniform(0, 2) for _ in range(5))):
        data = ranged.compress(x, rate=rate)
        assert read_header(data).rate == pytest.approx(rate, rel=1e-7)
        with torch.no_grad():
            expected = ranged(x, rate=rate).x_hat.clamp(0, 1)
        # What decodes to other symbols raises MismatchError; floats may round otherwise.
        assert (ranged.decompress(data) - expected).abs().mean() < 1e-3
    assert read_header(ranged.compress(x)).rate == 1
    sizes = [len(ranged.compress(x, rate=rate)) for rate in (0, 0.5, 1, 1.5, 2)]
    assert sizes == sorted(sizes)


def test_exact_gains_are_correctly_rounded(ranged: CCAModel) -> None:
    assert ranged.gains is not None
    rate = 0.625
    found = ranged.gains.exact(rate)
    for gain, logs in (
        (found.y, ranged.gains.y),
        (found.z_inverse, ranged.gains.z_inverse),
    ):
        exact = logs.detach().double()
        expected = (exact[0] * (1 - rate) + exact[1] * rate).exp().float()
        torch.testing.assert_close(gain.flatten(), expected, rtol=2e-7, atol=0)
    broken = make_model(ranged.config)
    with torch.no_grad():
        broken.gains.z_inverse[1, 0] = float("nan")
    with pytest.raises(CodecError, match="not finite"):
        broken.compress(torch.rand(1, 3, 64, 64), rate=0.5)


def test_tiles_previews_and_files_keep_their_rate(ranged: CCAModel, tmp_path: Path) -> None:
    x = torch.rand(1, 3, 300, 1000)
    data = compress(ranged, TensorSource(x), max_memory=LITTLE, rate=1.7)
    assert read_header(data).tile > 0
    whole = ranged.decompress(data)
    assert whole.shape == x.shape
    blocks: list[torch.Tensor] = []
    cut = read_stream(data[: len(data) // 2], partial=True)
    decode_stream(ranged, cut, lambda _, block: blocks.append(block))
    assert torch.cat(blocks, dim=1).shape == (3, 300, 1000)
    again = load_model(save_model(ranged, tmp_path / "model.safetensors"))
    assert again.config == ranged.config
    assert torch.equal(again.decompress(data), whole)


@pytest.mark.parametrize("rate", [-0.001, 2.001, float("nan"), float("inf")])
def test_a_rate_outside_of_the_range_is_refused(ranged: CCAModel, rate: float) -> None:
    x = torch.rand(1, 3, 64, 64)
    for work in (ranged.compress, lambda x, rate: ranged(x, rate=rate)):
        with pytest.raises(CodecError, match=r"from 0 \(fewest bits\) to 2 \(most\)"):
            work(x, rate=rate)


def test_a_stream_whose_rate_makes_no_sense_is_refused(ranged: CCAModel, model: CCAModel) -> None:
    x = torch.rand(1, 3, 64, 64)
    for codec, rate in ((ranged, 7.0), (ranged, float("nan")), (ranged, None), (model, 1.0)):
        stream = read_stream(codec.compress(x))
        header = replace(stream.header, rate=rate)
        forged = write_stream(header, {}, stream.tiles, stream.symbol_check or 0)
        with pytest.raises(CodecError, match="rate"):
            codec.decompress(forged)


@pytest.mark.parametrize(
    "weights", [[1], [1, 2], [2, 2], [2, -1], [2, "1"], "2, 1", [float("inf"), 1], list(range(99))]
)
def test_rate_weights_that_make_no_sense_are_refused(weights: object) -> None:
    with pytest.raises(CodecError, match="rate_weights"):
        CCAConfig.from_mapping({"rate_weights": weights})


def test_commands_take_a_rate(
    ranged: CCAModel,
    model: CCAModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(ranged, tmp_path / "ranged.safetensors")
    save_model(model, tmp_path / "single.safetensors")
    Path("in").mkdir()
    Image.effect_noise((90, 70), 60).convert("RGB").save("in/a.png")
    line = "compress in/a.png a.cca --model ranged.safetensors --rate"
    assert _run(f"{line} 1.25 --verify", capsys)[0] == 0
    assert read_header(Path("a.cca").read_bytes()).rate == 1.25
    assert _run("decompress a.cca out.png", capsys)[0] == 0
    code, out, err = _run(f"{line} 2.5", capsys)
    assert (code, out) == (2, "")
    assert "from 0 (fewest bits) to 2 (most) with this model, not 2.5" in " ".join(err.split())
    code, _, err = _run("compress in/a.png b.cca --model single.safetensors --rate 1", capsys)
    assert code == 2
    assert "a single rate" in err
    assert not Path("b.cca").exists()
    folder = "compress in out --model ranged.safetensors --json --rate"
    # What is there at another rate is made anew, at the same one kept.
    for rate, written in ((0.3, 1), (0.3, 0), (0.4, 1)):
        result = json.loads(_run(f"{folder} {rate}", capsys)[1])
        assert (result["written"], result["kept"]) == (written, 1 - written)
