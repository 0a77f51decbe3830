"""Picture files of every mode, through the codec and back into a file."""

from __future__ import annotations

import io
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.codec import CodecError, MismatchError
from pipeline.codec.files import compress_file, decompress_file
from pipeline.codec.folders import Task, compress_folder, decompress_folder
from pipeline.codec.picture import WRITTEN, read_picture, write_image
from pipeline.common.atomic import PartialFile
from pipeline.common.pictures.formats import usual_ending
from tests.codec.conftest import SMALL, make_model

MODEL = make_model(SMALL)


def _image(mode: str, size: tuple[int, int] = (37, 21)) -> Image.Image:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, size[::-1], dtype=np.uint16))
    colour = Image.fromarray(rng.integers(0, 256, (*size[::-1], 4), dtype=np.uint8), "RGBA")
    return colour if mode == "RGBA" else colour.convert(mode)


def _round_trip(image: Image.Image, folder: Path, deep: bool = False, **save: Any) -> Image.Image:
    source = folder / ("in.tif" if image.mode == "CMYK" else "in.png")
    image.save(source, **save)
    result = compress_file(MODEL, read_picture(source), folder / "a.cca")
    data = (folder / "a.cca").read_bytes()
    assert result["bytes"] == len(data)
    decompress_file(MODEL, data, folder / "out.png", deep=deep)
    found = Image.open(folder / "out.png")
    found.load()
    assert found.size == image.size
    return found


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("RGB", "RGB"), ("L", "L"), ("1", "L"), ("RGBA", "RGBA"), ("LA", "LA"), ("P", "RGBA"),
     ("CMYK", "RGB"), ("I;16", "L")],
)  # fmt: skip
def test_every_mode_comes_back(mode: str, expected: str, tmp_path: Path) -> None:
    assert _round_trip(_image(mode), tmp_path).mode == expected


def test_alpha_is_exact(tmp_path: Path) -> None:
    image = _image("RGBA")
    found = _round_trip(image, tmp_path)
    assert np.array_equal(np.asarray(found)[..., 3], np.asarray(image)[..., 3])


def test_opaque_alpha_costs_nothing(tmp_path: Path) -> None:
    image = _image("RGB").convert("RGBA")
    assert _round_trip(image, tmp_path).mode == "RGB"


def test_sixteen_bits_are_kept_where_asked(tmp_path: Path) -> None:
    found = _round_trip(_image("I;16"), tmp_path, deep=True)
    assert found.mode == "I;16"
    assert np.asarray(found).max() > 255


def test_profile_is_kept_and_orientation_applied(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = _round_trip(_image("RGB"), tmp_path, icc_profile=profile)
    assert found.info["icc_profile"] == profile
    assert read_picture(tmp_path / "in.png", profile=False).profile is None
    exif = Image.Exif()
    exif[0x0112] = 6
    _image("RGB").save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (37, 21)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    good = io.BytesIO()
    _image("RGB", (300, 200)).save(good, "PNG")
    for content in (b"", b"no picture", good.getvalue()[:500]):
        file = tmp_path / "x.png"
        file.write_bytes(content)
        with pytest.raises(CodecError, match=r"x\.png is not a picture"):
            read_picture(file)
    with pytest.raises(CodecError, match="there is no picture"):
        read_picture(tmp_path / "none.png")
    file.write_bytes(good.getvalue())
    with pytest.raises(CodecError, match="limit"):
        read_picture(file, max_pixels=1000)


def test_samples_without_a_known_range_are_refused(tmp_path: Path) -> None:
    for samples in (np.ones((4, 5), np.float32), np.full((4, 5), 70_000, np.int32)):
        Image.fromarray(samples).save(tmp_path / "x.tif")
        with pytest.raises(
            CodecError, match=r"x\.tif can't be read: .* no value is known to be white"
        ):
            read_picture(tmp_path / "x.tif")


def test_sixteen_bits_keep_their_transparent_value(tmp_path: Path) -> None:
    values = (np.arange(40 * 30, dtype=np.uint16) * 50).reshape(30, 40)
    values[:10] = 7
    for deep in (True, False):
        found = _round_trip(Image.fromarray(values), tmp_path, deep=deep, transparency=7)
        assert found.mode == ("I;16" if deep else "LA")
        alpha = read_picture(tmp_path / "out.png").alpha
        assert alpha is not None
        assert np.array_equal(alpha == 0, values == 7)
    data = (tmp_path / "a.cca").read_bytes()
    with pytest.raises(CodecError, match=r"take \.png"):
        decompress_file(MODEL, data, tmp_path / "out.tif", deep=True)


def test_colours_stay_where_the_profile_is_not_kept(tmp_path: Path) -> None:
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    _image("RGB").save(tmp_path / "x.png", icc_profile=wide)
    assert read_picture(tmp_path / "x.png").profile is None, "a profile for other samples"


def test_targets_that_are_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CodecError, match="suffix"):
        write_image(_image("RGB"), tmp_path / "out.doc")
    with pytest.raises(CodecError, match=r"take \.png"):
        write_image(_image("RGBA"), tmp_path / "out.jpg")
    assert list(tmp_path.iterdir()) == []


def _smooth(mode: str) -> Image.Image:
    y, x = np.mgrid[0:48, 0:70]
    if mode == "I;16":
        return Image.fromarray((x * 900 + y).astype(np.uint16))
    channels = [x * 3, y * 5, x + y, np.minimum(x * 4 + 1, 255)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8), "RGBA").convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("kind", list(WRITTEN))
def test_what_is_written_keeps_what_the_codec_kept(kind: str, mode: str, tmp_path: Path) -> None:
    """Size, alpha and depth come back, and colours as near as the format allows; or it says no."""
    image, path = _smooth(mode), tmp_path / f"out.{usual_ending(kind)}"
    try:
        write_image(image, path)
    except CodecError:
        assert list(tmp_path.iterdir()) == []
        assert mode not in ("L", "RGB") or kind not in Image.SAVE or kind in ("QOI", "SGI")
        return
    with Image.open(path) as found:
        assert found.size == image.size
        if mode == "I;16":
            assert np.array_equal(np.asarray(found), np.asarray(image))
            return
        got, wanted = (np.asarray(one.convert("RGBA"), float) for one in (found, image))
    assert np.array_equal(got[..., 3], wanted[..., 3])
    error = np.mean((got[..., :3] - wanted[..., :3]) ** 2)
    assert error < (40 if kind == "GIF" else 2), f"{kind}: {10 * np.log10(255**2 / error):.1f} dB"


def test_documents_and_icons_are_no_targets(tmp_path: Path) -> None:
    for name in ("a.pdf", "a.eps", "a.ico", "a.icns", "a"):
        with pytest.raises(CodecError, match=r"take \.png"):
            write_image(_image("RGB"), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_folders_are_compressed_in_parallel_and_resumed(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "deeper").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "deeper/b.png"):
        _image("RGB").save(source / name)
    task = Task(MODEL, target, workers=2)
    first = compress_folder(source, task)
    assert (first["written"], first["kept"]) == (3, 0)
    files = {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}
    assert {str(file.relative_to(target)) for file in files} == {
        "a.png.cca", "a.jpg.cca", "deeper/b.png.cca"
    }  # fmt: skip
    (target / "a.png.cca").write_bytes(files[target / "a.png.cca"][:-40])
    killed = PartialFile(target / "deeper", "b.png.cca")
    killed.file.close()
    again = compress_folder(source, replace(task, workers=1))
    assert (again["written"], again["kept"]) == (1, 2)
    assert {file: file.read_bytes() for file in files} == files
    assert not killed.path.exists()
    (source / "bad.png").write_bytes(b"no picture")
    with pytest.raises(CodecError, match=r"1 of 4 .*bad\.png"):
        compress_folder(source, task)
    (source / "bad.png").unlink()
    _image("L").save(source / "a.png")
    os.utime(source / "a.png", (time.time() + 60,) * 2)
    assert compress_folder(source, task)["written"] == 1, "a newer picture is compressed again"
    assert compress_folder(source, task, profile=False)["written"] == 1
    back = decompress_folder(target, replace(task, target=tmp_path / "back"))
    assert back["written"] == 3
    found = {str(file.relative_to(tmp_path / "back")) for file in (tmp_path / "back").rglob("*.*")}
    assert found == {"a.png", "a.jpg.png", "deeper/b.png"}
    assert decompress_folder(target, replace(task, target=tmp_path / "back"))["kept"] == 3


def test_what_fails_at_run_time_is_told_before_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    _image("RGB").save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")

    def fail(*_: object) -> None:
        raise MismatchError("the file decodes to other symbols")

    monkeypatch.setattr("pipeline.codec.files.decode_stream", fail)
    with pytest.raises(MismatchError, match=r"2 of 2 .*good\.png"):
        compress_folder(tmp_path / "in", Task(MODEL, tmp_path / "out"), verify=True)
    assert not list((tmp_path / "out").rglob("*.cca"))
