"""The README's commands and its Python work as shown, in order, in one folder."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.docs.commands import commands, run, shorten
from tests.tracking.test_command import pipeline

# The recipe's stages stay three, with a small model, one fine-tuned rate and few steps.
OVERRIDES = (
    "model=tiny",
    *("stages.0.steps=4", "stages.0.warmup=0", "stages.1.steps=2", "stages.2.steps=1"),
    *("stages.1.rate_weight=[1.8]", "stages.2.rate_weight=[1.8]"),
    *(f"stages.{i}.batch=2" for i in range(3)),
    *("stages.0.crop=64", "stages.1.crop=64", "stages.2.crop=192"),
    "data.held_out=0",
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, root: Path, pictures: Path) -> Path:
    """A folder with what a reader of the README has: the checkout, ImageNet, Kodak, a picture."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("recipes", "Makefile", "pyproject.toml", ".ci"):
        (folder / name).symlink_to(root / name)
    photographs = sorted((pictures / "train").glob("*.jpg"))
    _write_tar_of_tars(folder / "ILSVRC2012_img_train.tar", photographs)
    with zipfile.ZipFile(folder / "flickr30k.zip", "w") as archive:
        for picture in photographs:
            archive.write(picture, f"flickr30k-images/{picture.name}")
        rows = "".join(f"{picture.name}| 0| a photograph\n" for picture in photographs)
        archive.writestr("results.csv", f"image_name| comment_number| comment\n{rows}")
    (folder / "kodak").mkdir()
    with Image.open(pictures / "kodak" / "kodim23.webp") as image:
        small = image.convert("RGB").crop((100, 100, 276, 276))
    small.save(folder / "kodak" / "kodim23.png")
    small.save(folder / "photo.jpg")
    small.save(folder / "other.jpg")
    return folder


def _write_tar_of_tars(path: Path, photographs: list[Path]) -> None:
    """Write what ImageNet's training set comes as: a tar for each class, in one tar."""
    with tarfile.open(path, "w") as outer:
        for label in range(3):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as inner:
                for picture in photographs[label::3]:
                    inner.add(picture, f"n0000000{label}_{picture.name}")
            member = tarfile.TarInfo(f"n0000000{label}.tar")
            member.size = stream.tell()
            stream.seek(0)
            outer.addfile(member, stream)


@pytest.mark.slow
def test_every_command_of_the_readme_works_in_order(
    reader: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    shown = commands(root / "README.md")
    assert len(shown) >= 10
    for command in shown:
        assert not command.reason
        assert_works(command.words, reader)
    with (
        Image.open(reader / "photo.jpg") as before,
        Image.open(reader / "mine.png") as after,
    ):
        assert before.size == after.size
    python = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    assert len(python) == 2
    names: dict[str, Any] = {"x": torch.rand(1, 3, 40, 56)}
    for block in python:
        exec(block, names)
    assert (reader / "again.cca").stat().st_size > 0
    assert names["x_hat"].shape == (1, 3, 40, 56)


def assert_works(words: tuple[str, ...], folder: Path) -> None:
    """Type a command; those of `pipeline` run in this process, which has imported torch already."""
    if words[0] == "pipeline":
        code, text = pipeline(*words[1:])
    else:
        done = run(shorten(words, OVERRIDES), folder)
        code, text = done.returncode, done.stdout + done.stderr
    assert code == 0, f"{' '.join(words)}\n{text}"
