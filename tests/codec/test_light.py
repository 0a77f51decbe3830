"""Small models without torch: the same words, the same latents, pixels within one step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.codec import CodecError, MismatchError, load_model, save_model
from pipeline.codec.architectures.small import SmallConfig, SmallModel
from pipeline.codec.architectures.small.light import FORM, LightSmall
from pipeline.codec.architectures.small.light.coder import LightCoder
from pipeline.codec.backends import compress, decode_stream
from pipeline.codec.bitstream import Header, read_stream, write_stream
from pipeline.codec.box import box_model
from pipeline.codec.coding import pad
from pipeline.codec.light import LightModel, light_model, model_for
from pipeline.codec.picture import Canvas, Picture, read_picture

RATES = (8.0, 4.0, 1.0)
SIZES = [(64, 64), (1, 1), (130, 71)]


def make(config: SmallConfig) -> SmallModel:
    """A model whose every weight matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallModel(config).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if not name.startswith("hyper_density"):
                    weight.add_(torch.randn_like(weight) * 0.1)
            model.analysis.down.weight.mul_(8)
            model.hyper_analysis.leave.weight.mul_(8)
    return model


@pytest.fixture(scope="module", params=[(), RATES], ids=["one rate", "rates"])
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallModel, LightModel]:
    tiny = SmallConfig.tiny().to_dict() | {"rate_weights": list(request.param)}
    tiny.pop("architecture")
    file = save_model(make(SmallConfig.from_mapping(tiny)), tmp_path_factory.mktemp("model"))
    light = light_model(file)
    assert light is not None
    model: Any = load_model(file)
    return model, light


def coder_of(light: LightModel) -> LightCoder:
    networks = light.networks
    assert isinstance(networks, LightSmall)
    return networks.coder


def rates(model: SmallModel) -> list[float | None]:
    return [0.0, 0.7, 2.0] if model.config.rates else [None]


def test_a_latent_has_the_same_words_and_decodes_to_the_same_bits(
    pair: tuple[SmallModel, LightModel],
) -> None:
    model, light = pair
    y = torch.randn(1, model.config.latent_channels, 12, 8) * 20
    for rate in rates(model):
        tile = model.coder().encode(y, 0, rate)
        with torch.no_grad():
            _, z = model.make_coder().analyse_y(y, rate)
        words, check = coder_of(light).encode(last(y), last(z), rate)
        assert np.array_equal(words, tile.words)
        assert check == tile.check
        y_hat, _ = coder_of(light).decode(tile.words, (3, 2), rate)
        assert np.array_equal(y_hat, last(tile.y_hat))


def last(x: torch.Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_streams_of_either_decode_with_the_other(
    pair: tuple[SmallModel, LightModel], size: tuple[int, int]
) -> None:
    model, light = pair
    x = torch.rand(1, 3, *size)
    for rate in rates(model):
        theirs = model.compress(x, rate)
        assert (
            model.decompress(light.compress(last(x), Header(1, 1, ""), {}, rate)).shape == x.shape
        )
        found = np.rint(255 * light.decompress(read_stream(theirs)))
        wanted = np.rint(255 * last(model.decompress(theirs)))
        assert np.abs(found - wanted).max() <= 1


def test_the_model_that_ships_has_the_same_fingerprint_and_bits_in_both() -> None:
    model, light = load_model(box_model()), light_model(box_model())
    assert light is not None
    assert light.fingerprint == model.fingerprint
    rows, columns = np.mgrid[0:96, 0:96]
    pattern = np.stack([np.sin(rows / 9), np.cos(columns / 7), np.sin((rows + columns) / 11)])
    x = torch.from_numpy((0.5 + 0.4 * pattern).astype(np.float32))[None]
    for rate in (0.0, 2.5):
        with torch.no_grad():
            y = model.analyse(pad(x, 64), rate)
        tile = model.coder().encode(y, 0, rate)
        y_hat, check = coder_of(light).decode(tile.words, (2, 2), rate)
        assert check == tile.check
        assert np.array_equal(y_hat, last(tile.y_hat))


@pytest.mark.parametrize("config", [SmallConfig(), SmallConfig.tiny()], ids=["box", "tiny"])
def test_the_shapes_are_those_of_the_model(config: SmallConfig) -> None:
    for weights in ((), RATES):
        config = replace(config, rate_weights=weights)
        with torch.device("meta"):
            state = SmallModel(config).state_dict()
        assert FORM.shapes(config) == {name: tuple(weight.shape) for name, weight in state.items()}


def test_streams_that_are_not_its_own_are_refused(pair: tuple[SmallModel, LightModel]) -> None:
    model, light = pair
    data = model.compress(torch.rand(1, 3, 70, 70))
    stream = read_stream(data)
    other = write_stream(
        Header(**{**vars(stream.header), "fingerprint": "0" * 16}), {}, stream.tiles, 1
    )
    with pytest.raises(CodecError, match="was made with the model"):
        light.decompress(read_stream(other))
    assert stream.symbol_check is not None
    wrong = write_stream(stream.header, {}, stream.tiles, stream.symbol_check ^ 1)
    with pytest.raises(MismatchError):
        light.decompress(read_stream(wrong))
    empty = write_stream(stream.header, {}, [stream.tiles[0][:1]], stream.symbol_check)
    with pytest.raises(MismatchError):
        light.decompress(read_stream(empty))


def test_a_model_that_is_not_right_is_left_to_torch(tmp_path: Path) -> None:
    file = save_model(make(SmallConfig.tiny()), tmp_path)
    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata()
    weights = load_file(file)
    name = "model.context.slices.0.mean.weight"

    def light_of(changed: dict[str, torch.Tensor], **said: str) -> LightModel | None:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file(changed, path, metadata | said)
        return light_model(path)

    assert light_of(weights) is not None
    assert light_of({key: value for key, value in weights.items() if key != name}) is None
    assert light_of(weights | {"model.more": torch.zeros(1)}) is None
    assert light_of(weights | {name: weights[name][:, :1].contiguous()}) is None
    assert light_of(weights | {name: weights[name] * float("nan")}) is None
    assert light_of(weights, version="2") is None
    assert light_of(weights, fingerprint="0" * 64) is None
    assert light_of(weights | {name: weights[name] * 2}) is None
    assert light_of(weights, config="[]") is None
    assert light_of(weights, config="{") is None
    assert light_model(tmp_path / "none.safetensors") is None


def test_a_process_that_has_torch_takes_torch() -> None:
    assert "torch" in sys.modules
    assert model_for(box_model()) is None


def test_what_it_does_not_take_goes_to_torch(tmp_path: Path) -> None:
    """Pictures of several tiles, cut streams, and pictures that are too large."""
    model = make(SmallConfig.tiny())
    file = save_model(model, tmp_path)
    light = light_model(file)
    assert light is not None
    assert not light.takes(2**11, 2**12)
    picture = Picture(np.full((530, 520, 3), 99, np.uint8))
    memory = (256 + 2 * model.config.margin) ** 2 * model.config.bytes_per_pixel
    tiled = compress(light, picture, picture.header(), {}, memory)
    whole = compress(light, picture, picture.header(), {})
    assert read_stream(tiled).header.tile == 256
    assert read_stream(whole).header.tile == 0
    for data in (tiled, whole[:-12], whole):
        canvas = Canvas(read_stream(data, partial=True).header)
        decode_stream(light, read_stream(data, partial=True), canvas.paint)
        assert canvas.pixels.std() > 0


def test_nothing_of_it_loads_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.codec.box import box_model;"
        "from pipeline.codec.light import model_for;"
        "import pipeline.codec.picture, pipeline.codec.bitstream;"
        "assert model_for(box_model(), 'cuda') is None;"
        "assert model_for(box_model()) is not None;"
        "assert not {'torch', 'pandas', 'mlflow'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)


def differing(pictures: Sequence[Path], side: int | None) -> list[str]:
    """The pictures whose words differ between 1, 2 and 3 threads of torch, or decode otherwise."""
    model, quick = load_model(box_model()), light_model(box_model())
    assert quick is not None
    wrong, before = [], torch.get_num_threads()
    for picture in pictures:
        x = pad(read_picture(picture).x[..., :side, :side], 64)
        with torch.no_grad():
            y = model.analyse(x, 2.5)
        size = x.shape[2] // 64, x.shape[3] // 64
        try:
            tiles = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                tiles.append(model.coder().encode(y, 0, 2.5))
        finally:
            torch.set_num_threads(before)
        y_hat, check = coder_of(quick).decode(tiles[0].words, size, 2.5)
        same = [np.array_equal(tile.words, tiles[0].words) for tile in tiles]
        same += [np.array_equal(last(tile.y_hat), y_hat) for tile in tiles]
        if not all(same) or check != tiles[0].check:
            wrong.append(picture.name)
    return wrong


PICTURES = sorted((Path(__file__).parents[2] / "recipes/demo/pictures/kodak").iterdir())


def test_any_number_of_threads_and_numpy_agree() -> None:
    assert differing(PICTURES[:2], 192) == []


@pytest.mark.nightly
def test_all_pictures_agree() -> None:
    assert differing(PICTURES, None) == []
