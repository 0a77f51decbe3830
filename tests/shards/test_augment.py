"""Augmentation: mistakes are told before work starts; batches and workers change nothing."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import kornia.augmentation
import numpy as np
import pytest
import torch
from PIL import Image

from shards import Manifest, ShardsError
from shards.augment.operations import Augmenter
from shards.augment.spec import Spec, read_spec
from shards.inspecting.verify import verify
from shards.options import augment_options
from tests.shards.making import SMALL, checksums, corpus, jpeg, make, rejects, rows

LIC = Path("shards/augment/lic.yaml")
EVERYTHING = """
format: png
operations:
  - RandomDownscale: {scale: [0.5, 0.9], min_side: 34}
  - RandomCrop: {size: 32, count: 2}
  - RandomHorizontalFlip: {p: 0.5}
  - RandomVerticalFlip: {}
  - ColorJiggle: {brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.1, p: 0.7}
  - RandomGaussianBlur: {kernel_size: [3, 3], sigma: [0.1, 2.0], p: 0.5}
  - RandomGaussianNoise: {std: 0.05, p: 0.5}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "everything.yaml"
    path.write_text(EVERYTHING)
    return path


def pictures(count: int) -> list[tuple[str, np.ndarray]]:
    images = (Image.open(io.BytesIO(jpeg(n, 64 + n % 3, 48 + n % 2))) for n in range(count))
    return [(f"picture{number}", np.asarray(image)) for number, image in enumerate(images)]


def test_a_picture_does_not_depend_on_its_batch(spec: Path) -> None:
    augmenter = Augmenter(read_spec(spec), seed=3)
    batch = pictures(12)
    together = augmenter(batch)
    backwards = augmenter(batch[::-1])
    for one in batch:
        alone = augmenter([one])[one[0]]
        assert len(alone) == 2
        for number, pixels in enumerate(alone):
            assert pixels.shape == (32, 32, 3)
            assert np.array_equal(pixels, together[one[0]][number])
            assert np.array_equal(pixels, backwards[one[0]][number])
    crops = [crop.tobytes() for crops in together.values() for crop in crops]
    assert len(set(crops)) == 24
    other = Augmenter(read_spec(spec), seed=4)(batch)
    assert any(not np.array_equal(other[key][0], together[key][0]) for key in together)


# What those of Kornia's operations are given that have no defaults.
NEEDED: dict[str, dict[str, Any]] = {
    "Denormalize": {"mean": [0.1, 0.1, 0.1], "std": [0.9, 0.9, 0.9]},
    "Normalize": {"mean": [0.1, 0.1, 0.1], "std": [1.1, 1.1, 1.1]},
    "RandomBoxBlur": {"kernel_size": [3, 3]},
    "RandomGaussianBlur": {"kernel_size": [3, 3], "sigma": [0.1, 2.0]},
    "RandomMedianBlur": {"kernel_size": [3, 3]},
    "RandomMotionBlur": {"kernel_size": [3, 9], "angle": 35.0, "direction": 0.5},
    "RandomRain": {"number_of_drops": [10, 20], "drop_height": [2, 4], "drop_width": [-2, 2]},
}
REFUSED = {"RandomDissolving"}  # needs a library of diffusion models, and weights from a network


def kornias() -> list[str]:
    """Return the names of all of Kornia's augmentations of intensity and colour."""
    base = kornia.augmentation.IntensityAugmentationBase2D
    found = vars(kornia.augmentation).items()
    kinds = {name for name, one in found if isinstance(one, type) and issubclass(one, base)}
    return sorted(kinds - {base.__name__} - REFUSED)


@pytest.mark.parametrize("name", kornias())
def test_each_of_kornias_operations_is_the_same_in_any_batch(name: str) -> None:
    spec = Spec.from_dict({"operations": [{name: {**NEEDED.get(name, {}), "p": 1.0}}]})
    batch = pictures(4)
    torch.manual_seed(1)
    together = Augmenter(spec, seed=5)(batch)
    torch.manual_seed(2)
    apart = Augmenter(spec, seed=5)
    for key, pixels in batch[::-1]:
        assert np.array_equal(apart([(key, pixels)])[key][0], together[key][0])


def test_drawing_leaves_the_callers_random_numbers_alone() -> None:
    augmenter = Augmenter(Spec.from_dict({"operations": [{"RandomGaussianNoise": {"p": 1}}]}), 0)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    augmenter(pictures(1))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.slow
def test_the_same_shards_from_any_workers(spec: Path, tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus", count=16)
    (source / "class0" / "small.jpg").write_bytes(jpeg(1, 64, 33))
    options = replace(SMALL, shard_size=50_000, augment=augment_options(str(spec), "cpu"))
    summary = make(source, tmp_path / "one", options, workers=1)
    make(source, tmp_path / "two", options, workers=2)
    assert checksums(tmp_path / "one") == checksums(tmp_path / "two")
    assert (summary.listed, summary.samples, summary.shards > 1) == (
        17,
        34 - 2 * summary.rejected,
        True,
    )
    assert not verify(tmp_path / "one").problems
    for row in rows(tmp_path / "one"):
        assert (row["width"], row["height"], row["format"]) == (32, 32, "png")
        assert str(row["key"])[-2:] in ("_0", "_1")
    with pytest.raises(ShardsError, match="--augment was"):
        make(source, tmp_path / "one", replace(options, augment=None))


def test_a_picture_under_the_crop_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "crop.yaml"
    path.write_text("operations:\n  - RandomCrop: {size: 50}\n")
    source = corpus(tmp_path / "corpus", count=10, classes=1)
    options = replace(SMALL, augment=augment_options(str(path), "cpu"))
    summary = make(source, tmp_path / "d", options)
    assert summary.samples + summary.rejected == 10
    assert set(rejects(tmp_path / "d").values()) == {"too small"}


@pytest.mark.parametrize("count", [1, 2])
def test_resuming_compares_with_the_pictures_that_were_read(tmp_path: Path, count: int) -> None:
    path = tmp_path / "crop.yaml"
    path.write_text(f"operations:\n  - RandomCrop: {{size: 32, count: {count}}}\n")
    source = corpus(tmp_path / "corpus", count=6)
    options = replace(SMALL, augment=augment_options(str(path), "cpu"))
    make(source, tmp_path / "d", options)
    picture = source / "class0" / "picture0000.jpg"
    os.utime(picture, (1, 1))
    assert make(source, tmp_path / "d", options).made == 0
    data = bytearray(picture.read_bytes())
    data[-10] ^= 1
    picture.write_bytes(data)
    with pytest.raises(ShardsError, match="picture class0/picture0000 changed"):
        make(source, tmp_path / "d", options)


def test_the_ready_specification(root: Path, tmp_path: Path, pictures: Path) -> None:
    augment = augment_options(str(root / LIC), "cpu")
    source = tmp_path / "in"
    source.mkdir()
    for path in sorted((pictures / "train").glob("*.jpg"))[:4]:
        (source / path.name).write_bytes(path.read_bytes())
    options = replace(SMALL, shard_size=5_000_000, augment=augment)
    assert make(source, tmp_path / "d", options).samples == 8
    with tarfile.open(tmp_path / "d" / "train-000000.tar") as tar:
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None
            with Image.open(stream) as image:
                assert image.size == (256, 256)
    assert Manifest.read(tmp_path / "d").options["augment"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("operations: 3", "must have a list `operations`"),
        ("a: [", "is not YAML"),
        ("format: jpg\noperations: []", "format is 'jpg', not one of png, webp, jxl"),
        ("operations:\n  - RandomCrop: {sise: 3}", "unknown parameter 'sise'; .*'size' is missing"),
        ("operations:\n  - RandomCrop: {size: -3}", "size must be a whole number above 0"),
        ("operations:\n  - RandomDownscale: {scale: [2, 3]}", "0 < LOW <= HIGH <= 1"),
        ("operations:\n  - RandomSomething: {}", "neither Resize, RandomDownscale"),
        ("operations:\n  - RandomRotation: {degrees: 3}", "neither Resize, RandomDownscale"),
        ("operations:\n  - ColorJiggle: {brightnes: 3}", "operation ColorJiggle: .*brightnes"),
        ("operations:\n  - RandomGrayscale: {p: often}", "RandomGrayscale: p is 'often', no prob"),
        ("operations:\n  - RandomHorizontalFlip: {p: 7}", "p is 7, no probability"),
        ("operations:\n  - RandomThing: {}\n  - RandomOther: {}", "RandomThing .*RandomOther "),
        ("operations:\n  - Resize\n", "is not of the form"),
    ],
)
def test_mistakes_are_told_before_work_starts(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ShardsError, match=sentence):
        augment_options(str(path), "cpu")
    with pytest.raises(ShardsError, match="cannot read"):
        read_spec(tmp_path / "nowhere.yaml")


def test_resizing_by_the_shorter_side() -> None:
    spec = Spec.from_dict({"operations": [{"Resize": {"shorter": 24}}], "format": "webp"})
    (result,) = Augmenter(spec, 0)([("a", np.zeros((48, 96, 3), np.uint8))])["a"]
    assert result.shape == (24, 48, 3)
