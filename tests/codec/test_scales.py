"""Entropy networks whose sums are exact in float32: the same words from any arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from pipeline.cli.main import main
from pipeline.codec import CCAModel, CodecError, load_model, save_model
from pipeline.codec.architectures.small import SmallConfig, SmallModel
from pipeline.codec.architectures.small.light import LightSmall
from pipeline.codec.arithmetic import in_float64
from pipeline.codec.calibrating import calibrate, compare
from pipeline.codec.exact import exact_copy
from pipeline.codec.layers import ChannelNorm, GlobalMean, NAFBlock, head
from pipeline.codec.light import light_model
from pipeline.codec.light import scaled as light
from pipeline.codec.model import Model
from pipeline.codec.paired_layers import paired
from pipeline.codec.picture import read_picture
from pipeline.codec.scaled_layers import give_scale
from pipeline.codec.scales import LARGEST_SUM, Scale, blocks_of, largest_sums, whole_weights
from tests.codec.test_light import last, make

KODAK = Path(__file__).parents[3] / "shared" / "data" / "kodak"
QUICK = settings(max_examples=30, deadline=None)


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, Scale]:
    """A layer of any kind that takes a scale, with weights of any strength, and a scale."""
    kind = draw(st.sampled_from(["linear", "1x1", "3x3", "strided", "depthwise", "transposed"]))
    outputs, inputs = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 63, 256, 257, 700]))
    layer: Any
    if kind == "linear":
        layer = nn.Linear(inputs, outputs)
    elif kind == "transposed":
        layer = nn.ConvTranspose2d(inputs, outputs, 3, 2, padding=1, output_padding=1)
    elif kind == "depthwise":
        layer = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
    elif kind == "strided":
        layer = nn.Conv2d(inputs, outputs, 3, 2, padding=1)
    else:
        layer = nn.Conv2d(inputs, outputs, int(kind[0]), padding=int(kind[0]) // 2)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = rng.standard_normal(layer.weight.shape) * 10.0 ** draw(st.integers(-6, 6))
    if draw(st.booleans()):
        weights = np.sign(weights) * np.abs(weights).max()
    if draw(st.booleans()):
        weights[rng.random(weights.shape) < 0.01] *= 1000
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weights))
    scale = Scale(draw(st.integers(-10, 20)), draw(st.integers(8, 13)))
    give_scale(layer, scale)
    return layer, scale


@given(layers(), st.integers(0, 2**32))
@QUICK
def test_every_layer_at_its_bounds_is_that_of_float64(
    case: tuple[nn.Module, Scale], seed: int
) -> None:
    """Inputs at the largest, with the signs of weights, or beyond it: what no sum may exceed."""
    layer, scale = case
    rng = np.random.default_rng(seed)
    made: Any = layer
    weights = made.weight.detach()
    if isinstance(layer, nn.Linear):
        x = torch.stack([weights[0].sign(), -weights[-1].sign()])
    else:
        inputs = made.in_channels
        across = weights.flatten(2).sum(2)
        signs = across[:, 0] if inputs > 1 and made.groups > 1 else across.view(-1, inputs)[0]
        if isinstance(layer, nn.ConvTranspose2d):
            signs = across[:, 0]
        x = signs.sign()[None, :, None, None] * torch.ones(1, inputs, 5, 4)
        x[..., 0] = torch.from_numpy(rng.choice([-1.0, 1.0], (1, inputs, 5)))
    x = x * scale.largest * 2.0 ** (rng.integers(0, 2) - scale.exponent)
    exact = exact_copy(layer)
    found = exact(x)
    with in_float64():
        wanted = exact(x)
    assert found.dtype == wanted.dtype == torch.float32
    assert torch.equal(found, wanted)


@given(layers())
@QUICK
def test_the_worst_partial_sum_of_every_block_stays_below_2_24(
    case: tuple[nn.Module, Scale],
) -> None:
    """Every sign pattern at once: the largest input times the sum of the weights' sizes."""
    layer, scale = case
    made: Any = layer
    flat = made.weight.detach().double().flatten(1).numpy()
    blocks = blocks_of(flat.shape[1])
    whole, factor = whole_weights(flat, blocks, scale)
    worst = [int(s) * scale.largest for s in largest_sums(whole, blocks)]
    assert max(worst) <= LARGEST_SUM
    assert np.array_equal(whole, np.rint(whole))
    # As fine as it can be: a finer unit of any output would break its bound.
    finer = np.rint(flat / (factor * 2.0**scale.exponent)[:, None] * 2)
    some = np.abs(flat).max(1) * 2.0**41 > 1
    over = largest_sums(finer, blocks) * scale.largest > LARGEST_SUM
    assert (over | ~some | (factor * 2.0**scale.exponent <= 2.0**-40)).all()


def test_numpy_s_layers_are_torch_s_at_their_bounds() -> None:
    rng = np.random.default_rng(0)
    scale, weight = Scale(8, 11), rng.standard_normal((7, 600, 1, 1)).astype(np.float32)
    bias = rng.standard_normal(7).astype(np.float32)
    conv = nn.Conv2d(600, 7, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(weight))
        conv.bias.copy_(torch.from_numpy(bias))
    give_scale(conv, scale)
    x = np.sign(weight[0, :, 0, 0]) * rng.choice([0.4, 1, 3], (4, 5, 600)).astype(np.float32) * 4
    wanted = exact_copy(conv)(torch.from_numpy(x).permute(2, 0, 1)[None])
    assert np.array_equal(light.ScaledMatrix(weight, bias, scale)(x), last(wanted))


@given(layers(), st.integers(2, 3))
@QUICK
def test_a_batch_is_its_pictures_one_by_one(case: tuple[nn.Module, Scale], count: int) -> None:
    layer, scale = case
    made: Any = layer
    shape = [layer.in_features] if isinstance(layer, nn.Linear) else [made.in_channels, 4, 5]
    x = torch.randn(count, *shape) * 2.0 ** (scale.bits - 2 - scale.exponent)
    exact = exact_copy(layer)
    assert torch.equal(exact(x), torch.cat([exact(one) for one in x.split(1)]))


class Chain(nn.Module):
    """Every layer that networks of means and scales have, and what multiplies its result."""

    def __init__(self, exponent: int) -> None:
        super().__init__()
        self.block = NAFBlock(40)
        self.head = head(40, (24, 260), 3)
        self.gain = nn.Parameter(torch.randn(1, 3, 1, 1))
        layer: Any
        for layer in [*self.block.modules(), *self.head.modules()]:
            if hasattr(layer, "weight"):
                give_scale(layer, Scale(exponent, 9 if isinstance(layer, ChannelNorm) else 12))
                nn.init.normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(x)) * self.gain
        return out


def test_two_networks_as_one_give_the_bits_of_each() -> None:
    torch.manual_seed(3)
    first, second, third = (exact_copy(Chain(exponent)) for exponent in (4, 6, 6))
    both = paired(first, second)
    assert both is not None
    x = torch.randn(2, 40, 5, 6) * 10
    wanted = torch.cat([first(x[:1]), second(x[1:])])
    assert torch.equal(both(x), wanted)
    with in_float64():
        assert torch.equal(both(x), wanted)
    # Of other bits, settings or structure: no pair.
    third.block.expand.largest //= 2
    assert paired(first, third) is None
    assert paired(first.head, nn.Sequential(*list(second.head)[:3])) is None
    assert paired(nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)) is None
    assert paired(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)) is None


@pytest.mark.parametrize("channels", [3, 224])
@pytest.mark.parametrize("bits", [8, 13])
def test_a_norm_and_a_mean_at_their_bounds_have_no_order(channels: int, bits: int) -> None:
    """Channels and threads in any order, in float32 where sums fit and in float64 where not."""
    norm, scale = ChannelNorm(channels), Scale(4, bits)
    give_scale(norm, scale)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 3, 7, generator=generator).sign() * scale.largest / 16
    order = torch.randperm(channels, generator=generator)
    exact = exact_copy(norm)
    assert torch.equal(exact(x)[:, order], exact(x[:, order]))
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    wanted = light.ScaledNorm(ones, zeros, norm.eps, scale)(last(x[:1]))
    assert np.array_equal(wanted, last(exact(x[:1])))
    mean = exact_copy(nn.Sequential(GlobalMean(), norm))[0]
    assert torch.equal(mean(x)[:, order], mean(x[:, order]))
    assert (mean(x) - x.double().mean((2, 3), keepdim=True)).abs().max() < 1e-4 * scale.largest


@contextmanager
def arithmetic(threads: int, double: bool) -> Iterator[None]:
    """So many threads; sums in float32 or float64."""
    before = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(threads)
        if double:
            stack.enter_context(in_float64())
        yield


def calibrated(model: Any) -> Any:
    torch.manual_seed(5)
    calibrate(model, [torch.rand(1, 3, 64, 64)])
    return model


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallModel, LightSmall]:
    """A small model with scales, read from its file with torch and without."""
    fields = SmallConfig.tiny().to_dict() | {"rate_weights": [8.0, 4.0, 1.0]}
    fields.pop("architecture")
    made = calibrated(make(SmallConfig.from_mapping(fields)))
    file = save_model(made, tmp_path_factory.mktemp("scaled"))
    light, model = light_model(file), load_model(file)
    assert light is not None
    assert light.fingerprint == model.fingerprint == made.fingerprint
    assert isinstance(model, SmallModel)
    assert isinstance(light.networks, LightSmall)
    return model, light.networks


def same_words(
    model: Model,
    y: Tensor,
    rate: float | None,
    light: LightSmall | None,
    ways: Any = ((1, True), (2, False), (3, False)),
) -> None:
    """Words of 1, 2 and 3 threads, of float32 and float64, and of numpy are the same."""
    tile = model.coder().encode(y, 0, rate)
    unit = model.config.unit // model.config.latent_stride
    size = y.shape[2] // unit, y.shape[3] // unit
    for threads, double in ways:
        with arithmetic(threads, double):
            back = model.coder().decode(tile.words, *size, rate=rate)
        assert back.check == tile.check
        assert torch.equal(back.y_hat, tile.y_hat)
    if light is not None:
        coder: Any = model.coder()
        with torch.no_grad():
            _, z = coder.analyse_y(y, rate)
        words, check = light.coder.encode(last(y), last(z), rate)
        assert np.array_equal(words, tile.words)
        assert check == tile.check
        y_hat, _ = light.coder.decode(tile.words, size, rate)
        assert np.array_equal(y_hat, last(tile.y_hat))


@pytest.mark.parametrize("strength", [0.1, 20.0, 5000.0])
def test_any_arithmetic_gives_the_same_words(
    small: tuple[SmallModel, LightSmall], strength: float
) -> None:
    """Latents as they are calibrated, and such that most inputs are clipped."""
    model, light = small
    y = torch.randn(1, model.config.latent_channels, 4, 8) * strength
    same_words(model, y, 0.7, light)


def test_the_published_architecture_codes_the_same_in_any_arithmetic(model: CCAModel) -> None:
    plain = model.fingerprint
    calibrated(model)
    assert model.fingerprint != plain
    x = torch.rand(1, 3, 64, 64)
    y = model.analyse(x).detach()
    same_words(model, y, None, None, [(1, True), (2, False)])
    # The networks of means and scales run as one; each by itself gives the same.
    coder: Any = model.coder()
    assert coder._context.pairs is not None
    words = coder.encode(y).words
    coder._context.pairs = None
    assert np.array_equal(coder.encode(y).words, words)
    model.set_scales({})
    assert model.fingerprint == plain


def test_settings_of_torch_that_lower_precision_change_no_word(
    small: tuple[SmallModel, LightSmall],
) -> None:
    model, _ = small
    y = torch.randn(1, model.config.latent_channels, 4, 4) * 20
    wanted = model.coder().encode(y, 0, 1.0).words
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        # Without autocast around the hyper-analysis, which is no part of what decoders repeat.
        found = model.coder().encode(y, 0, 1.0).words
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(found, wanted)


def test_scales_cost_next_to_nothing(small: tuple[SmallModel, LightSmall]) -> None:
    model, _ = small
    plain = make(model.config)
    torch.manual_seed(9)
    found = compare(plain, model, [torch.rand(1, 3, 128, 128)])
    assert abs(found.percent) < 1
    assert found.bytes_before > 1000


@pytest.mark.nightly
@pytest.mark.skipif(not KODAK.is_dir(), reason="without Kodak's pictures")
def test_kodak_and_two_hundred_latents_at_the_bounds(
    small: tuple[SmallModel, LightSmall],
) -> None:
    model, light = small
    for path in sorted(KODAK.glob("*.png")):
        y = model.analyse(read_picture(path).x[:, :, :512, :512], 1.3).detach()
        same_words(model, y, 1.3, light)
    generator = torch.Generator().manual_seed(0)
    for number in range(200):
        y = torch.randn(1, model.config.latent_channels, 4, 4, generator=generator)
        same_words(model, y.sign() * 10.0 ** (number % 7 - 1), number % 3, light)


def rewritten(file: Path, **metadata: str) -> Path:
    """The same tensors under other metadata."""
    with safe_open(file, "np") as tensors:
        kept = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no dict
        said = tensors.metadata() | metadata
    save_file(kept, file, said)
    return file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: {**s, next(iter(s)): [7, 9]}, "weights and scales have the fingerprint"),
        (lambda s: dict(list(s.items())[1:]), "has the fingerprint|have the fingerprint"),
        (lambda s: {**s, "nowhere": [7, 9]}, "no layer nowhere"),
        (lambda s: {**s, "analysis.blocks": [7, 9]}, "no layer analysis.blocks"),
        (lambda s: {**s, "context.exp": [1, 99]}, "out of range"),
        (lambda s: {**s, "context.exp": [True, 9]}, "not two whole numbers"),
        (lambda s: {**s, "context.exp": 3}, "not two whole numbers"),
        (lambda s: {}, "no mapping"),
        (lambda s: [], "no mapping"),
    ],
)
def test_scales_that_are_not_the_model_s_are_refused(
    tmp_path: Path, change: Any, words: str
) -> None:
    config = SmallConfig.tiny()
    file = save_model(calibrated(make(config)), tmp_path / "a.safetensors")
    with safe_open(file, "np") as tensors:
        scales = json.loads(tensors.metadata()["scales"])
    rewritten(file, scales=json.dumps(change(scales)))
    assert light_model.__wrapped__(file) is None
    with pytest.raises(CodecError, match=words):
        load_model(file)


def test_a_model_without_scales_stays_of_version_1(tmp_path: Path) -> None:
    model = make(SmallConfig.tiny())
    with safe_open(save_model(model, tmp_path / "a.safetensors"), "np") as tensors:
        assert tensors.metadata()["version"] == "1"
    with safe_open(save_model(calibrated(model), tmp_path / "b.safetensors"), "np") as tensors:
        assert tensors.metadata()["version"] == "2"


def test_some_layers_with_scales_and_others_without_are_refused() -> None:
    model = calibrated(make(SmallConfig.tiny()))
    some = dict(list(model.scales.items())[:5])
    model.set_scales(some)
    with pytest.raises(CodecError, match="no scale, and others have"):
        model.compress(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_pictures_that_are_no_numbers_are_refused(value: float) -> None:
    model = make(SmallConfig.tiny())
    with pytest.raises(CodecError, match="not finite"):
        calibrate(model, [torch.full((1, 3, 64, 64), value)])
    with pytest.raises(CodecError, match="no pictures"):
        calibrate(model, [])


def run(line: str) -> int | str | None:
    """Run the command, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    return ended.value.code


def test_calibrate_makes_a_model_whose_files_it_alone_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    for number in range(3):
        picture = Image.effect_noise((70 + number, 66), 60).convert("RGB")
        picture.save(tmp_path / "photographs" / f"{number}.png")
    file = save_model(make(SmallConfig.tiny()), tmp_path / "plain.safetensors")
    before = file.read_bytes()
    line = "calibrate plain.safetensors --data photographs --out quick --pictures 2"
    assert run(f"{line} --compare photographs/0.png --json") == 0
    said = json.loads(capsys.readouterr().out)
    assert abs(said["percent"]) < 2
    made = load_model("quick")
    assert (made.fingerprint, len(made.scales)) == (said["fingerprint"], said["layers"])
    assert file.read_bytes() == before
    # Its own work it makes again, and says what it can't use.
    assert run(line) == 0
    assert load_model("quick").fingerprint == made.fingerprint
    assert run(line.replace("photographs", "nowhere")) == 2
    assert run(line.replace("--out quick", "--out plain.safetensors")) == 2
    assert "nowhere is no folder of pictures" in capsys.readouterr().err
    Path("words.safetensors").write_text("words")
    assert run(line.replace("--out quick", "--out words.safetensors")) == 2
    assert Path("words.safetensors").read_text() == "words"
    # The file of the one is not the other's, and is found by its fingerprint.
    assert run("compress photographs/0.png a.cca --model quick") == 0
    assert run("decompress a.cca a.png --model plain.safetensors") == 2
    assert run("decompress a.cca a.png --model quick") == 0
