"""What `evaluate` measures is what `compress` and `decompress` give, whatever kind of picture."""

from __future__ import annotations

from collections.abc import Iterator
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
from pipeline.evaluation.learned import measure_model
from pipeline.evaluation.metrics import psnr
from pipeline.evaluation.pictures import read_picture, read_sources
from pipeline.evaluation.progress import Meter
from shards.reading.decode import decode

HEIGHT, WIDTH = 9, 14
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16 transparent", "CMYK", "I", "LAB")


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


def written(folder: Path) -> Iterator[Path]:
    """Write pictures of every mode, orientation, profile and depth that a format can hold."""
    kinds = ((1, None), (1, SRGB), (6, None), (6, b"damaged"))
    for number, (mode, (orientation, profile)) in enumerate(product(MODES, kinds)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options: dict[str, Any] = {"icc_profile": profile} if profile else {}
        if mode.endswith("transparent"):
            options["transparency"] = 0
        ending = "tif" if mode in ("CMYK", "I", "LAB") else "png"
        path = folder / f"{number:03d}.{ending}"
        picture(mode).save(path, exif=exif, **options)
        yield path


@pytest.mark.slow
def test_evaluation_measures_what_is_coded(tmp_path: Path, model_files: list[Path]) -> None:
    (tmp_path / "pictures").mkdir()
    sources = read_sources(list(written(tmp_path / "pictures")))
    spec = ModelSpec("one", model_files[0])
    meter = Meter()
    result = measure_model(spec, sources, tmp_path / "streams", torch.device("cpu"), meter)
    model = load_model(model_files[0])
    stream, back = tmp_path / "a.cca", tmp_path / "back.png"
    for source, measured in zip(sources, result.point.pictures, strict=True):
        compress_file(model, read_for_coding(source.path), stream)
        decompress_file(model, stream.read_bytes(), back)
        original, decoded = read_picture(source.path), read_picture(back)
        assert original.shape == decoded.shape, source.path
        assert psnr(original, decoded) == measured.psnr, source.path
        assert np.array_equal(original, decode(source.path.read_bytes())), source.path
