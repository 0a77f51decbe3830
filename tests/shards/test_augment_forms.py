"""Augmented shards: what is written, what goes on as it was begun, and what is a reject."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image, ImageCms

from pipeline.common.errors import UsageError
from pipeline.common.pictures import read
from shards import Manifest, ShardsError, stream
from shards.augment.encoders import encoder_for
from shards.augment.measures import blocking, detail
from shards.augment.operations import Augmenter, Refused
from shards.augment.spec import ENCODERS, Spec, default_encoder
from shards.augment.surfaces import Device
from shards.inspecting.verify import verify
from shards.options import augment_options
from tests.shards.making import SMALL, checksums, corpus, encoded, jpeg, make, rejects

CROP = "operations:\n  - RandomDownscale: {scale: [0.7, 0.9]}\n  - RandomCrop: {size: 32}\n"
PAIRS = [(form, name) for form, names in ENCODERS.items() for name in names]


def asked(folder: Path, text: str) -> dict[str, Any]:
    """Return the option `augment` for a specification."""
    path = folder / "spec.yaml"
    path.write_text(text)
    return augment_options(str(path), "cpu")


def members(dest: Path) -> dict[str, bytes]:
    """Return the pictures of the shards in `dest`, by name."""
    found = {}
    for path in sorted(dest.glob("*.tar")):
        with tarfile.open(path) as tar:
            for one in tar:
                if not one.name.endswith((".json", ".cls", ".txt")):
                    found[one.name] = tar.extractfile(one).read()
    return found


@pytest.mark.parametrize(("form", "name"), PAIRS)
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (64, 48)])
def test_every_encoder_is_lossless(form: str, name: str, size: tuple[int, int]) -> None:
    if name == "libdeflate":
        pytest.importorskip("deflate")
    if form == "jxl":
        pytest.importorskip("pillow_jxl")
    encode = encoder_for(Spec((), form, encode=name))
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for colours in (None, profile):
        with Image.open(io.BytesIO(encode(pixels, colours))) as image:
            assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
            if form != "jxl":
                assert image.info.get("icc_profile") == colours


def test_the_quickest_png_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.augment.spec.find_spec", lambda name: None)
    assert default_encoder("png") == "zlib"
    monkeypatch.setattr("shards.augment.spec.find_spec", lambda name: object())
    assert default_encoder("png") == "libdeflate"


@pytest.mark.parametrize("form", ["png", "webp"])
def test_streams_and_webdataset_read_what_is_written(tmp_path: Path, form: str) -> None:
    source = corpus(tmp_path / "corpus", count=6)
    make(source, tmp_path / "d", replace(SMALL, augment=asked(tmp_path, f"format: {form}\n{CROP}")))
    written = {
        name.partition(".")[0]: np.asarray(Image.open(io.BytesIO(data)))
        for name, data in members(tmp_path / "d").items()
    }
    batch = next(iter(stream(tmp_path / "d", batch_size=len(written), crop=32, flip=False)))
    for key, pixels in zip(batch.keys, batch.images, strict=True):
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), written[key])
    if form == "png":
        tars = sorted(str(path) for path in (tmp_path / "d").glob("*.tar"))
        for one in webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"):
            assert np.array_equal(one["png"], written[one["__key__"]])
    assert not verify(tmp_path / "d").problems


def test_work_of_an_older_version_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", count=12)
    options = replace(SMALL, shard_size=20_000, augment=asked(tmp_path, CROP))
    first = {key: options.augment[key] for key in ("format", "operations", "device")}
    older = replace(SMALL, shard_size=20_000, augment={**first, "version": 1})
    make(source, tmp_path / "old", older)
    # As the older version wrote it: plan and manifest say nothing of versions.
    for path in (tmp_path / "old").iterdir():
        if path.suffix == ".json":
            text = path.read_text()
            for words in ('"version": 1', '"encode": "small"', '"colours": "srgb"'):
                text = text.replace(f",\n  {' ' * 2}{words}", "").replace(f",\n   {words}", "")
            path.write_text(text)
    plan = (tmp_path / "old" / ".train.plan.json").read_text()
    assert '"encode"' not in plan
    before = checksums(tmp_path / "old")
    gone = "train-000001.tar"
    (tmp_path / "old" / gone).unlink()
    (tmp_path / "old" / "train-000001.parquet").unlink()
    (tmp_path / "old" / "train.json").unlink()
    make(source, tmp_path / "old", options)
    assert checksums(tmp_path / "old")[gone] == before[gone]
    said = replace(options, augment=asked(tmp_path, CROP + "version: 2\n"))
    with pytest.raises(ShardsError, match="--augment was"):
        make(source, tmp_path / "old", said)
    make(source, tmp_path / "new", options)
    assert checksums(tmp_path / "new")[gone] != before[gone]
    assert Manifest.read(tmp_path / "new").options["augment"]["version"] == 2


def test_an_operation_that_fails_on_a_picture_makes_it_a_reject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kornia.augmentation

    class RandomTrouble(kornia.augmentation.RandomGaussianNoise):
        def apply_transform(self, images: Any, *more: Any, **named: Any) -> Any:
            if images.shape[-1] == 66:
                raise RuntimeError("not this width")
            return super().apply_transform(images, *more, **named)

    monkeypatch.setattr(kornia.augmentation, "RandomTrouble", RandomTrouble, raising=False)
    source = corpus(tmp_path / "corpus", count=8, classes=1)
    summary = make(
        source,
        tmp_path / "d",
        replace(SMALL, augment=asked(tmp_path, "operations: [{RandomTrouble: {p: 1}}]")),
    )
    assert summary.reasons == {"not augmented": 1}
    assert summary.samples == 7


def test_jpegs_with_strong_artefacts_are_rejected(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    clean = smooth.resize((192, 160), Image.Resampling.BICUBIC)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "clean.png").write_bytes(encoded(clean, "PNG"))
    (folder / "good.jpg").write_bytes(encoded(clean, "JPEG", quality=95))
    (folder / "bad.jpg").write_bytes(encoded(clean, "JPEG", quality=10))
    spec = asked(tmp_path, "operations: [{RejectBlocking: {over: 1.5}}]")
    summary = make(folder, tmp_path / "d", replace(SMALL, augment=spec))
    assert (summary.samples, summary.reasons) == (2, {"jpeg artefacts": 1})
    assert all("bad" in name for name in rejects(tmp_path / "d"))


def test_blocking_is_one_where_all_is_flat_or_small() -> None:
    assert blocking(np.zeros((64, 64), np.int32)) == 1.0
    assert blocking(np.zeros((1, 5), np.int32)) == 1.0


def test_crops_for_detail_are_drawn_again() -> None:
    pixels = np.full((200, 200, 3), 128, np.uint8)
    pixels[120:, 120:] = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)

    def found(**more: Any) -> list[float]:
        spec = Spec.from_dict({"operations": [{"RandomCrop": {"size": 32, "count": 8, **more}}]})
        crops = Augmenter(spec, 0)([("a", pixels)])["a"]
        assert len(crops) == 8
        return [detail(one[:, :, 1].astype(np.int32)) for one in crops]

    assert sum(one >= 5 for one in found(detail=5, tries=60)) == 8
    assert sum(one >= 5 for one in found()) < 6
    assert min(found(detail=1e6, tries=60)) > 20  # the one with the most, where none has enough


def test_scales_and_filters_are_drawn_from_mixtures() -> None:
    mixture = [[0.25, 0.25, 1], [0.5, 0.5, 3]]
    operation = {"RandomDownscale": {"mixture": mixture, "filter": ["lanczos", "area"]}}
    augmenter = Augmenter(Spec.from_dict({"operations": [operation]}), 0)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    results = augmenter([(f"k{number}", noise) for number in range(80)])
    sizes = [one.shape[0] for (one,) in results.values()]
    assert set(sizes) == {16, 32}
    assert 40 < sizes.count(32) < 75
    assert len({one.tobytes() for (one,) in results.values()}) == 4


def test_colours_are_converted_or_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    profile = _swapped_profile() or profile
    folder = tmp_path / "in"
    folder.mkdir()
    picture = Image.open(io.BytesIO(jpeg(3, 64, 48)))
    (folder / "a.png").write_bytes(encoded(picture, "PNG", icc_profile=profile))
    (folder / "b.jpg").write_bytes(encoded(picture, "JPEG", icc_profile=profile, quality=95))
    options = replace(SMALL, augment=asked(tmp_path, "colours: kept\noperations: []\n"))
    make(folder, tmp_path / "kept", options)
    options = replace(SMALL, augment=asked(tmp_path, "operations: []\n"))
    make(folder, tmp_path / "srgb", options)
    kept, converted = members(tmp_path / "kept"), members(tmp_path / "srgb")
    for name, data in kept.items():
        with Image.open(io.BytesIO(data)) as image, Image.open(io.BytesIO(converted[name])) as srgb:
            assert image.info["icc_profile"] == profile
            assert "icc_profile" not in srgb.info
            assert np.abs(np.asarray(image).astype(int) - np.asarray(srgb)).max() > 10
            if name.startswith("a."):
                assert np.array_equal(np.asarray(image), np.asarray(picture))


def _jpegs(mode: str) -> list[bytes]:
    """Return JPEGs with all that may say how they are to be shown."""
    image = Image.open(io.BytesIO(jpeg(3, 67, 45))).convert(mode)
    exif, profile = Image.Exif(), _swapped_profile()
    found = [encoded(image, "JPEG", exif=b"Exif\0\0nothing", icc_profile=profile)]
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        found.append(encoded(image, "JPEG", exif=exif, progressive=orientation % 2 == 0))
        found.append(encoded(image, "JPEG", exif=exif, icc_profile=profile, subsampling=0))
    found.append(encoded(image, "JPEG", xmp=b'<x tiff:Orientation="6"/>'))
    far = b"\xff\xed\xff\xff" + bytes(65_533)  # what an editor leaves, before the profile
    found.append(found[0][:2] + 4 * far + found[0][2:])
    return found


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_with_metadata_become_what_a_viewer_shows(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    files = _jpegs(mode)
    for number, data in enumerate([*files, files[5][: len(files[5]) * 3 // 4]]):
        (folder / f"{number}.jpg").write_bytes(data)
    options = replace(SMALL, augment=asked(tmp_path, "operations: []"))
    summary = make(folder, tmp_path / "d", options)
    assert summary.reasons == {"damaged": 1}
    written = members(tmp_path / "d")
    assert len(written) == len(files)
    for name, data in written.items():
        shown = read(folder / f"{name.partition('.')[0]}.jpg").shown()
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), shown)


def _swapped_profile() -> bytes:
    """Return an sRGB profile whose red and blue primaries have changed places."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    places = {bytes(data[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, blue = places[b"rXYZ"], places[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = (
        data[blue + 4 : blue + 12],
        data[red + 4 : red + 12],
    )
    return bytes(data)


@pytest.mark.parametrize("surface", [None, Device("cpu")])
def test_a_picture_that_would_become_too_large_is_refused(surface: Device | None) -> None:
    large = {"Resize": {"shorter": 20_000}}
    pictures = [("a", np.zeros((48, 48, 3), np.uint8)), ("b", np.zeros((1, 9_000, 3), np.uint8))]
    found = Augmenter(Spec.from_dict({"operations": [large]}), 0, surface=surface).each(pictures)
    words = "it would become 20000 x 20000, over 178956970 pixels"
    assert found["a"] == Refused("not augmented", words)
    spec = Spec.from_dict({"operations": [large, {"RandomCrop": {"size": 9}}]})
    found = Augmenter(spec, 0, surface=surface).each(pictures)
    assert [one.shape for one in found["a"] + found["b"]] == [(9, 9, 3)] * 2


def test_a_refusal_says_why() -> None:
    spec = Spec.from_dict({"operations": [{"RejectBlocking": {"over": 0}}]})
    (one,) = Augmenter(spec, 0).each([("a", np.zeros((48, 48, 3), np.uint8))]).values()
    assert isinstance(one, Refused)
    assert one.detail == "edges on a grid of 8 pixels are 1.00 times the others, over 0"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("version: 3\noperations: []", "version is 3, not one of 1 to 2"),
        ("encode: best\noperations: []", "encode is 'best': png has libdeflate, zlib, small"),
        ("colours: p3\noperations: []", "colours is 'p3', not one of srgb, kept"),
        ("operations: [{Resize: 3}]", "parameters must be"),
        ("operations: [{RandomDownscale: {}}]", "parameter 'scale' is missing"),
        ("operations: [{RandomDownscale: {scale: [1, 1], mixture: []}}]", "mixture must be a list"),
        ("operations: [{Resize: {shorter: 9, filter: sinc}}]", "filter must be one of bilinear"),
        ("operations: [{RandomCrop: {size: true}}]", "size must be a whole number above 0"),
        ("version: 1\noperations: [{RandomCrop: {size: 9, detail: 2}}]", "detail needs version 2"),
        ("operations: [{RandomCrop: {size: 256, count: 3000}}]", "have over 178956970 pixels"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ShardsError, match=sentence):
        asked(tmp_path, text)


def test_a_dry_run_shows_pictures_before_and_after(tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", count=4)
    (source / "class0" / "bad.jpg").write_bytes(b"nothing")
    options = replace(SMALL, augment=asked(tmp_path, CROP))
    page = tmp_path / "sheet.html"
    make(source, tmp_path / "d", options, dry_run=True, sheet=page)
    assert not (tmp_path / "d").exists()
    text = page.read_text()
    assert text.count("<section>") == 5
    assert text.count("data:image/png") == 8
    assert "rejected: not a picture" in text
    make(source, tmp_path / "d", options, dry_run=True, sheet=page)  # it replaces its own
    page.write_text("mine")
    with pytest.raises(UsageError, match=r"sheet\.html"):
        make(source, tmp_path / "d", options, dry_run=True, sheet=page)
    with pytest.raises(ShardsError, match="give it with --dry-run --augment"):
        make(source, tmp_path / "d", SMALL, dry_run=True, sheet=tmp_path / "new.html")
