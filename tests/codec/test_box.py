"""The codec in the box: small, found by what it made, and better than JPEG."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from pipeline.codec import Model, box, load_model
from pipeline.codec.box import box_model
from pipeline.codec.finding import find_model
from recipes.config.load import load_recipe
from recipes.config.schema import SHIPPED
from recipes.training.initial_model import starting_model

# A crop of 256 x 256 of a photograph that the demo evaluates on.
PICTURE = Path(__file__).parents[2] / "recipes/demo/pictures/kodak/kodim07.webp"
SIDE = 256


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(box_model())


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    with Image.open(PICTURE) as picture:
        return np.asarray(picture.convert("RGB").crop((200, 100, 200 + SIDE, 100 + SIDE)))


def _psnr(x: np.ndarray, y: np.ndarray) -> float:
    return float(-10 * np.log10(((x.astype(float) - y) ** 2).mean() / 255**2))


def _jpeg(pixels: np.ndarray, quality: int) -> tuple[int, float]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, optimize=True)
    size = file.tell()
    with Image.open(file) as picture:
        return size, _psnr(pixels, np.asarray(picture))


def _coded(model: Model, pixels: np.ndarray, rate: float) -> tuple[bytes, float]:
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    data = model.compress(x, rate)
    found = (model.decompress(data)[0] * 255).round().permute(1, 2, 0).numpy()
    return data, _psnr(pixels, found)


def test_the_file_is_small_and_has_all_rates() -> None:
    model = load_model(box_model())
    assert box_model().stat().st_size < 5_000_000
    assert model.config.rates == (0.0, 9.0)
    assert model.info.name == "box"


def test_the_file_and_its_card_name_the_pictures_and_their_licences() -> None:
    with safe_open(box_model(), "np") as file:
        said = file.metadata()["pictures"]
    card = (Path(__file__).parents[2] / "docs/model-card.md").read_text()
    rows = [row.split(" | ") for row in card.splitlines() if re.match(r"\| \d{3}-", row)]
    assert len(rows) == 175
    for row in rows:
        assert row[0][6:].removesuffix(".jpg") in said
        if "BY" in row[5]:
            assert row[4] in said or row[4] == "-"


def test_recipes_call_it_as_the_codec_does() -> None:
    assert SHIPPED == box.NAME
    run = load_recipe(Path(__file__).parents[2] / "recipes/fine-tune.yaml", []).runs()[0]
    assert run.init_model == "box"
    assert starting_model(run) == box_model()


def test_what_it_made_is_decoded_without_naming_it(model: Model, tmp_path: Path) -> None:
    data = model.compress(torch.rand(1, 3, 40, 50), 1.0)
    assert find_model(data, [tmp_path]) == box_model()


@pytest.mark.parametrize(("rate", "quality"), [(2.0, 12), (4.5, 35), (7.0, 75)])
def test_it_is_better_than_jpeg_in_fewer_bytes(
    model: Model, pixels: np.ndarray, rate: float, quality: int
) -> None:
    data, found = _coded(model, pixels, rate)
    size, jpeg = _jpeg(pixels, quality)
    assert found > jpeg
    assert len(data) < size
