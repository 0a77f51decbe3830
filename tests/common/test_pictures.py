"""One policy from any picture file to pixels: what is converted, and what is refused."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, features
from PIL import __version__ as pillow_version

from pipeline.common import pictures
from pipeline.common.pictures import PictureError, Refusal, formats, limits, read, read_coded
from pipeline.common.pictures.orientation import jpeg_orientation, orientation_of

RNG = np.random.default_rng(0)
NOISE = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = {"WEBP": {"lossless": True}}


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def refusal(data: bytes) -> Refusal:
    with pytest.raises(PictureError) as caught:
        read(data)
    return caught.value.refusal


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    data = saved(NOISE, kind, exif=oriented(orientation), **LOSSLESS.get(kind, {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(read(data).coded(), np.asarray(upright))
    assert np.array_equal(read_coded(data), np.asarray(upright))


def test_alpha_is_turned_with_its_picture() -> None:
    image = Image.fromarray(RNG.integers(0, 256, (3, 4, 4), dtype=np.uint8), "RGBA")
    picture = read(saved(image, "PNG", exif=oriented(6)))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.rot90(np.asarray(image)[..., 3], -1))


@pytest.mark.parametrize(
    ("mode", "kind", "shape", "alpha"),
    [
        ("1", "PNG", (5, 7), False),
        ("L", "PNG", (5, 7), False),
        ("LA", "PNG", (5, 7), True),
        ("P", "PNG", (5, 7, 3), False),
        ("PA", "TIFF", (5, 7, 3), True),
        ("RGB", "BMP", (5, 7, 3), False),
        ("RGBA", "TGA", (5, 7, 3), True),
        ("CMYK", "TIFF", (5, 7, 3), False),
        ("CMYK", "JPEG", (5, 7, 3), False),
        ("YCbCr", "TIFF", (5, 7, 3), False),
        ("LAB", "TIFF", (5, 7, 3), False),
    ],
)
def test_every_mode_is_read(mode: str, kind: str, shape: tuple[int, ...], alpha: bool) -> None:
    if mode == "YCbCr" and int(pillow_version.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 calls a small TIFF in YCbCr truncated")
    if mode == "LAB":
        image = Image.new("LAB", (7, 5), (200, 130, 120))
    elif mode == "PA":
        image = Image.new("PA", (7, 5))
    else:
        image = NOISE.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)))
    picture = read(saved(image, kind))
    assert picture.samples.shape == shape
    assert picture.samples.dtype == np.uint8
    assert (picture.alpha is not None) == alpha
    assert picture.coded().shape == picture.shown().shape == (5, 7, 3)


def test_sixteen_bits_are_kept_and_rounded_to_the_nearest_eight() -> None:
    values = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    header = b"P5 7 5 65535\n"
    for data in (
        saved(Image.fromarray(values), "PNG"),
        saved(Image.fromarray(values), "TIFF"),
        header + values.astype(">u2").tobytes(),
    ):
        picture = read(data)
        assert np.array_equal(picture.samples, values)
        assert picture.samples.dtype == np.uint16
        assert np.array_equal(picture.coded()[..., 1], np.rint(values / 257).astype(np.uint8))


def test_a_transparent_value_of_sixteen_bits_is_alpha() -> None:
    values = np.full((4, 5), 500, np.uint16)
    values[1] = 77
    picture = read(saved(Image.fromarray(values), "PNG", transparency=77))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha == 0, values == 77)
    assert (picture.shown()[1] == 255).all(), "shown on white"


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 255, np.uint8), (0, 65535, np.uint16), (-1, 9, None), (0, 65536, None)],
)
def test_32_bit_integers_are_read_by_what_they_fit(low: int, high: int, dtype: type | None) -> None:
    data = saved(Image.fromarray(np.array([[low, high]], np.int32)), "TIFF")
    if dtype is None:
        assert refusal(data) is Refusal.UNSUPPORTED
    else:
        assert read(data).samples.dtype == dtype
        assert read(data).samples.tolist() == [[low, high]]


def test_floating_point_is_refused_before_it_is_decoded() -> None:
    data = saved(Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)), "TIFF")
    assert refusal(data) is Refusal.UNSUPPORTED
    assert refusal(b"Pf 2 2 -1.0\n" + bytes(16)) is Refusal.UNSUPPORTED


def test_transparent_parts_are_shown_on_white_and_coded_as_stored() -> None:
    picture = read(saved(Image.new("RGBA", (4, 3), (9, 8, 7, 0)), "PNG"))
    assert (picture.shown() == 255).all()
    assert (picture.coded() == (9, 8, 7)).all()


def test_profiles_go_beside_the_samples_and_are_converted_for_showing() -> None:
    picture = read(saved(NOISE, "PNG", icc_profile=SRGB))
    assert picture.profile == SRGB
    assert np.array_equal(picture.coded(), np.asarray(NOISE))
    assert np.abs(picture.shown().astype(int) - np.asarray(NOISE)).max() <= 1


@pytest.mark.parametrize("profile", [b"no profile", SRGB[:200], SRGB[:-400]])
def test_a_damaged_profile_is_left_out(profile: bytes) -> None:
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        picture = read(saved(NOISE, kind, icc_profile=profile))
        if picture.profile is None:
            assert any("profile" in word for word in picture.converted)
            assert np.array_equal(picture.shown(), picture.coded())


def test_a_profile_for_other_samples_is_left_out() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert read(saved(NOISE, "PNG", icc_profile=lab)).profile is None
    assert read(saved(NOISE.convert("L"), "JPEG", icc_profile=SRGB)).profile is None


def test_a_jpeg_is_read_whatever_its_profile_is_cut_to() -> None:
    data = saved(NOISE, "JPEG", icc_profile=SRGB)
    start = data.index(b"\xff\xe2")
    plain = read(data).coded()
    for kept in (12, 13, 14, 20):
        segment = (
            b"\xff\xe2" + struct.pack(">H", kept + 2) + b"ICC_PROFILE\0\1\1"[:kept].ljust(kept)
        )
        size = int.from_bytes(data[start + 2 : start + 4], "big")
        cut = data[:start] + segment + data[start + 2 + size :]
        assert np.array_equal(read(cut).coded(), plain)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    "exif",
    [
        b"garbage that is no TIFF header at all",
        b"II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06\0\0\0",
        b"II*\0\xff\xff\xff\x7f",
        b"MM\0*\0\0\0\x08\0\x02\x01\x12\0\x05\0\0\0\x01\0\0\0\x06\x87\x69\0\x04\0\0\0\x01\xff\xff\0\0",
    ],
)
def test_damaged_exif_says_nothing_against_the_picture(kind: str, exif: bytes) -> None:
    block = exif if kind == "PNG" else b"Exif\0\0" + exif
    try:
        data = saved(NOISE, kind, exif=block)
    except Exception:
        pytest.skip(f"Pillow does not write such EXIF into {kind}")
    assert read(data).coded().size == np.asarray(NOISE).size


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_orientation_of_a_jpeg_is_found_as_pillow_finds_it(data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    if data.draw(st.booleans()):
        exif[0x0112] = data.draw(st.integers(0, 9))
    options: dict[str, object] = {"exif": exif}
    if data.draw(st.booleans()):
        number = data.draw(st.integers(0, 9))
        options["xmp"] = f'<rdf tiff:Orientation="{number}"/>'.encode()
    jpeg = bytearray(saved(NOISE, "JPEG", **options))
    for _ in range(data.draw(st.integers(0, 3))):
        jpeg[data.draw(st.integers(2, min(200, len(jpeg) - 1)))] = data.draw(st.integers(0, 255))
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
            wanted = orientation_of(image)
    except Exception:
        return
    assert jpeg_orientation(bytes(jpeg)) == wanted


def test_the_first_of_several_frames_is_read() -> None:
    first, second = Image.new("L", (4, 3), 10), Image.new("L", (4, 3), 200)
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        options = {"save_all": True, "append_images": [second], **LOSSLESS.get(kind, {})}
        assert (read(saved(first, kind, **options)).coded() == 10).all()


def test_contents_decide_not_names(tmp_path: Path) -> None:
    path = tmp_path / "really.jpg"
    path.write_bytes(saved(NOISE, "PNG"))
    assert read(path).header.format == "PNG"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
    assert refusal(postscript) is Refusal.NOT_A_PICTURE, "a program, not a picture"


def test_what_is_no_picture_is_refused() -> None:
    assert refusal(b"") is Refusal.NOT_A_PICTURE
    assert refusal(b"hardly a picture") is Refusal.NOT_A_PICTURE
    whole = saved(NOISE.resize((200, 200)), "PNG")
    assert refusal(whole[: len(whole) // 2]) is Refusal.DAMAGED


def test_limits_come_before_memory(tmp_path: Path) -> None:
    huge = tmp_path / "huge.tif"
    with huge.open("wb") as file:
        file.truncate(6 << 30)
    with pytest.raises(PictureError, match="too large"):
        read(huge)
    header = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 9, 0, 0, 54, 40, 60000, 60000, 1, 24, *[0] * 6
    )
    assert refusal(header + bytes(100)) is Refusal.TOO_LARGE
    with pytest.raises(PictureError, match="limit of 34 pixels"):
        read(saved(NOISE, "PNG"), max_pixels=34)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="no regular file"):
        read(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("head", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow-jxl"),
        (b"\xff\x0a", "pillow-jxl"),
    ],
)
def test_a_missing_plugin_is_named(
    head: bytes, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_plugin_is_there", lambda name: False)
    with pytest.raises(PictureError, match=rf"{package}.*cca-pipeline\[formats\]") as caught:
        read(head + bytes(100))
    assert caught.value.refusal is Refusal.UNSUPPORTED


@pytest.mark.parametrize(("plugin", "kind"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_plugins_read_where_they_are_installed(plugin: str, kind: str) -> None:
    pytest.importorskip(plugin)
    assert formats._plugin_is_there(plugin)
    options = {"quality": 90} if kind == "HEIF" else {"lossless": True}
    picture = read(saved(NOISE.resize((64, 48)), kind, **options))
    assert picture.coded().shape == (48, 64, 3)
    assert picture.header.ending in pictures.ENDINGS


def test_all_that_can_be_read_has_an_ending_that_is_known() -> None:
    for one in formats.FORMATS:
        assert formats.usual_ending(one.name) in pictures.ENDINGS
        assert formats.usual_ending(one.name.lower()) in pictures.ENDINGS
    assert formats.usual_ending("MPO") == "jpg"
    assert features.check("avif")
    assert pictures.is_picture("a/B.TIFF")
    assert not pictures.is_picture("a/._b.png")
    assert not pictures.is_picture("a/.png")


def test_pictures_of_a_folder_and_the_others(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/c.ico", ".hidden.png", "notes.txt", "raw.dng"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "z.png").touch()
    (tmp_path / "lost.png").symlink_to(tmp_path / "nothing")
    (tmp_path / ".a.png.0a1b2c-1-0a1b2c3d.partial").touch()
    found, others = pictures.find_pictures(tmp_path)
    assert [path.name for path in found] == ["a.JPG", "b.png", "c.ico"]
    assert [path.name for path in others] == [
        ".git", ".hidden.png", "lost.png", "notes.txt", "raw.dng"
    ]  # fmt: skip


def test_the_package_needs_no_torch() -> None:
    code = "import sys, pipeline.common.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_limits_leave_room_for_the_largest_picture_in_sixteen_bits() -> None:
    assert 6 * limits.MAX_PIXELS <= limits.MAX_BYTES


def test_libtiff_writes_nothing_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(file, "TIFF", compression="tiff_adobe_deflate")
    data = bytearray(file.getvalue())
    data[200:260] = bytes(60)  # of the compressed samples, which come first
    with pytest.raises(PictureError, match="damaged"):
        read(bytes(data))
    assert capfd.readouterr().err == ""


def test_what_pillow_logs_is_not_written_to_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a command
    logging.getLogger("PIL.TiffImagePlugin").error("More samples per pixel than can be decoded")
    logging.getLogger("another").error("this is written")
    assert capfd.readouterr().err == "this is written\n"
