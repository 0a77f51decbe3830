"""The Pillow plugin: `.cca` files wherever pictures are read, and nothing else disturbed."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from pipeline.codec import CCAModel, save_model
from pipeline.codec.bitstream import MAGIC
from pipeline.pillow import register_cca_opener
from tests.codec.conftest import SMALL, make_model

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pillow")
    save_model(make_model(SMALL), folder / "model.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _registered(folder: Path) -> Iterator[None]:
    """A small model saves and opens, as if it came with the package."""
    register_cca_opener(folder / "model.safetensors", [folder])
    yield
    register_cca_opener()


def _saved(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "CCA", **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_mode_that_pillow_has_is_saved_and_opened(mode: str) -> None:
    image = Image.effect_noise((33, 20), 80)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif "A" in mode:
        image = image.convert(mode[:-1])
        image.putalpha(Image.linear_gradient("L").resize((33, 20)))
    else:
        image = image.convert(mode)
    with Image.open(io.BytesIO(_saved(image))) as opened:
        assert (opened.format, opened.size) == ("CCA", (33, 20))
        assert opened.get_format_mimetype() == "image/x-cca"
        kept = {"I;16": "L", "1": "L", "P": "RGB", "CMYK": "RGB"}.get(mode, mode)
        assert opened.mode == kept
        opened.load()
        if "A" in mode:
            assert opened.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_pixels_are_those_of_the_command(folder: Path, model: CCAModel) -> None:
    from pipeline.codec.files import decompress_file

    image = Image.effect_noise((40, 30), 60).convert("RGB")
    image.save(folder / "a.cca", icc_profile=SRGB)
    decompress_file(make_model(SMALL), (folder / "a.cca").read_bytes(), folder / "a.png")
    with Image.open(folder / "a.cca") as ours, Image.open(folder / "a.png") as theirs:
        assert ours.info["icc_profile"] == SRGB
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
        assert np.asarray(ours.convert("L")).shape == (30, 40), "again, from memory"
        small = ours.copy()
        small.thumbnail((10, 10))
        assert max(small.size) == 10


def test_opening_reads_a_header_and_no_torch(folder: Path) -> None:
    Image.new("RGB", (70, 50)).save(folder / "b.cca")
    code = (
        "import sys; from PIL import Image; from pipeline.pillow import register_cca_opener;"
        f"register_cca_opener(); image = Image.open({str(folder / 'b.cca')!r});"
        "assert image.size == (70, 50); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bits_are_chosen_by_quality_size_or_bits() -> None:
    register_cca_opener()
    image = Image.effect_noise((64, 64), 40).convert("RGB")
    low, high = _saved(image, quality="lowest"), _saved(image, quality=100)
    assert len(low) < len(_saved(image)) < len(high)
    assert len(_saved(image, size=len(high) // 2)) <= len(high) // 2
    assert len(_saved(image, bpp=2.0)) <= 64 * 64 // 4
    with Image.open(io.BytesIO(high)) as opened:
        assert opened.info["rate"] == 9
        opened.load()
    for wrong in ({"quality": 101}, {"quality": 5, "rate": 1}, {"size": 3}, {"rate": 99}):
        with pytest.raises(OSError, match="cannot write the picture as CCA"):
            _saved(image, **wrong)
    with pytest.raises(OSError, match="floating-point"):
        _saved(Image.new("F", (8, 8)))


def test_what_is_damaged_or_of_an_unknown_model_is_one_oserror(folder: Path) -> None:
    data = _saved(Image.effect_noise((64, 64), 60).convert("RGB"))
    with Image.open(io.BytesIO(data[:-30])) as cut, pytest.raises(OSError, match="cut"):
        cut.load()
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        with Image.open(io.BytesIO(data[:-30])) as cut:
            cut.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    register_cca_opener(max_pixels=64 * 64 - 1)
    with pytest.raises(UnidentifiedImageError, match="64 x 64"):
        Image.open(io.BytesIO(data))
    newer = MAGIC + b"\x09" + data[len(MAGIC) + 1 :]
    with pytest.raises(UnidentifiedImageError, match="needs a program that reads version 9"):
        Image.open(io.BytesIO(newer))
    register_cca_opener()
    fingerprint = make_model(SMALL).fingerprint[:16]
    with Image.open(io.BytesIO(data)) as unknown, pytest.raises(OSError, match=fingerprint):
        unknown.load()
    (folder / "c.cca").write_bytes(data)
    with Image.open(folder / "c.cca") as beside_its_model:
        beside_its_model.load()


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=80), ours=st.booleans())
def test_any_bytes_are_opened_or_no_picture(data: bytes, ours: bool) -> None:
    try:
        with Image.open(io.BytesIO(MAGIC + data if ours else data)) as image:
            image.load()
    except (OSError, SyntaxError):
        return


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_other_files_are_opened_as_before(form: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (9, 7)).save(file, form)
    with Image.open(file) as image:
        assert image.format == form


def test_imageio_and_datasets_read_streams(folder: Path) -> None:
    image = Image.effect_noise((40, 30), 60).convert("RGB")
    image.save(folder / "d.cca")
    with Image.open(folder / "d.cca") as opened:
        pixels = np.asarray(opened)
    datasets = pytest.importorskip("datasets")
    feature = datasets.Image()
    found = feature.decode_example({"path": str(folder / "d.cca"), "bytes": None})
    assert np.array_equal(np.asarray(found), pixels)
    imageio = pytest.importorskip("imageio.v3")
    assert np.array_equal(imageio.imread(folder / "d.cca"), pixels)
