"""The README's commands and its Python work as shown, in order, in one folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.docs.commands import commands, run, shorten

# The recipe's stages stay three, with one fine-tuned rate instead of many and few steps.
OVERRIDES = (
    *("stages.0.steps=4", "stages.1.steps=2", "stages.2.steps=1"),
    *("stages.1.rate_weight=[1.8]", "stages.2.rate_weight=[1.8]"),
    *(f"stages.{i}.batch=2" for i in range(3)),
    *("stages.0.crop=64", "stages.1.crop=64", "stages.2.crop=192"),
    *("data.validation=kodak", "evaluate_every=4"),
)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, root: Path, pictures: Path) -> Path:
    """A folder with what a reader of the README has: the checkout, ImageNet, Kodak, a picture."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "recipes").symlink_to(root / "recipes")
    (folder / "Makefile").symlink_to(root / "Makefile")
    for i, picture in enumerate(sorted((pictures / "train").glob("*.jpg"))):
        label = folder / "ILSVRC" / "train" / f"n0000000{i % 3}"
        label.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, label)
    (folder / "kodak").mkdir()
    with Image.open(pictures / "kodak" / "kodim23.webp") as picture:
        small = picture.convert("RGB").crop((100, 100, 356, 356))
    small.save(folder / "kodak" / "kodim23.png")
    small.save(folder / "photo.png")
    return folder


@pytest.mark.slow
def test_every_command_of_the_readme_works_in_order(reader: Path, root: Path) -> None:
    shown = commands(root / "README.md")
    assert len(shown) >= 10
    for command in shown:
        assert not command.reason
        done = run(shorten(command.words, OVERRIDES), reader)
        assert done.returncode == 0, f"{' '.join(command.words)}\n{done.stdout}\n{done.stderr}"
    with (
        Image.open(reader / "photo.png") as before,
        Image.open(reader / "photo-decoded.png") as after,
    ):
        assert before.size == after.size
    python = re.search(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    assert python is not None
    code = f"import torch; x = torch.rand(1, 3, 40, 56)\n{python[1]}\nprint(tuple(x_hat.shape))"
    shape = subprocess.run([sys.executable, "-c", code], cwd=reader, capture_output=True, text=True)
    assert shape.stdout.strip().endswith("(1, 3, 40, 56)"), shape.stderr
