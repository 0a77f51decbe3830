"""What `evaluate` measures is what `compress` and `decompress` give, whatever kind of picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pipeline.codec import load_model
from pipeline.codec.files import compress_file, decompress_file
from pipeline.codec.picture import read_picture as read_for_coding
from pipeline.evaluation import ModelSpec
from pipeline.evaluation.learned import ModelLoader, measure_model
from pipeline.evaluation.metrics import psnr
from pipeline.evaluation.pictures import read_picture, read_sources
from pipeline.evaluation.progress import Meter
from shards.reading.decode import decode

HEIGHT, WIDTH = 9, 14
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MODES = (
    *("1", "L", "LA", "P", "P transparent", "RGB", "RGBA"),
    *("I;16", "I;16 transparent", "CMYK", "I", "LAB"),
)
PROFILES = (None, SRGB, b"damaged")
# What each orientation asks of a picture, by EXIF's definition.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def picture(mode: str) -> Image.Image:
    rng = np.random.default_rng(len(mode))
    ramp = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    if mode.startswith("I"):
        deep = (ramp * 65535).astype(np.int32 if mode == "I" else np.uint16)
        return Image.fromarray(deep)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    if mode == "LAB":
        return Image.frombytes("LAB", (WIDTH, HEIGHT), noise[..., :3].tobytes())
    return Image.fromarray(noise, "RGBA").convert(mode)


def written(folder: Path, kinds: Iterable[tuple[str, int, bytes | None]]) -> Iterator[Path]:
    """Write a picture of each (mode, orientation, profile) in a format that can hold it."""
    for number, (mode, orientation, profile) in enumerate(kinds):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options: dict[str, Any] = {"icc_profile": profile} if profile else {}
        if mode.endswith("transparent"):
            options["transparency"] = 0
        ending = "tif" if mode in ("CMYK", "I", "LAB") else "png"
        path = folder / f"{number:03d}.{ending}"
        picture(mode.removesuffix(" transparent")).save(path, exif=exif, **options)
        yield path


def some() -> Iterator[tuple[str, int, bytes | None]]:
    """Yield every mode three times, with all orientations and profiles in turn."""
    for number, mode in enumerate(MODES * 3):
        yield mode, 1 + (number + number // 8) % 8, PROFILES[number // len(MODES)]


def test_all_that_read_pictures_read_the_same(tmp_path: Path) -> None:
    plain = {}
    for path, (mode, orientation, profile) in zip(
        written(tmp_path, product(MODES, range(1, 9), PROFILES)),
        product(MODES, range(1, 9), PROFILES),
        strict=True,
    ):
        coded = read_for_coding(path)
        measured = read_picture(path)
        assert np.array_equal(measured, decode(path.read_bytes())), path
        # The values that are coded, before they are rounded to 8 bits.
        assert np.abs(255 * coded.array() - measured).max() <= 0.5, path
        if orientation == 1:
            plain[mode, profile] = measured
        upright = Image.fromarray(plain[mode, profile])
        turn = TURNS.get(orientation)
        upright = upright if turn is None else upright.transpose(turn)
        assert np.array_equal(measured, np.asarray(upright)), path


@pytest.mark.parametrize("values", [0.5, 255.0, np.nan])
def test_all_that_read_pictures_refuse_samples_without_a_range(
    values: float, tmp_path: Path
) -> None:
    path = tmp_path / "floats.tif"
    Image.fromarray(np.full((HEIGHT, WIDTH), values, np.float32)).save(path)
    for read in (read_for_coding, read_picture, lambda path: decode(path.read_bytes())):
        with pytest.raises(ValueError, match="float"):
            read(path)


@pytest.mark.slow
def test_evaluation_measures_what_is_coded(tmp_path: Path, model_files: list[Path]) -> None:
    (tmp_path / "pictures").mkdir()
    sources = read_sources(list(written(tmp_path / "pictures", some())))
    spec = ModelSpec("one", model_files[0])
    meter = Meter()
    result = measure_model(
        spec, sources, tmp_path / "streams", ModelLoader(torch.device("cpu")), meter
    )
    model = load_model(model_files[0])
    stream, back = tmp_path / "a.cca", tmp_path / "back.png"
    for source, measured in zip(sources, result.point.pictures, strict=True):
        compress_file(model, read_for_coding(source.path), stream)
        decompress_file(model, stream.read_bytes(), back)
        original, decoded = read_picture(source.path), read_picture(back)
        assert original.shape == decoded.shape, source.path
        assert psnr(original, decoded) == measured.psnr, source.path
        assert np.array_equal(original, decode(source.path.read_bytes())), source.path
