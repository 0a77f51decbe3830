"""Large held-out pictures go through in tiles, so that memory does not grow with them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.codec import CCAConfig, CCAModel
from recipes.config.load import load_recipe
from recipes.config.settings import RecipeError
from recipes.training import held_out as held_out_pictures
from recipes.training import validate
from tests.recipes.conftest import MICRO


def test_a_large_picture_goes_through_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CCAModel(CCAConfig.from_mapping(MICRO)).eval()
    picture = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    whole, _ = validate.reconstruct(model, picture)
    monkeypatch.setattr(validate, "LARGEST", 100 * 100)
    monkeypatch.setattr(validate, "TILE", 128)
    decoded, bpp = validate.reconstruct(model, picture)
    bits = 0.0
    for top, left in ((0, 0), (0, 128), (128, 0), (128, 128)):
        tile = np.ascontiguousarray(picture[top : top + 128, left : left + 128])
        alone, rate = validate.reconstruct(model, tile, whole=True)
        assert (decoded[top : top + 128, left : left + 128] == alone).all()
        bits += rate * tile.shape[0] * tile.shape[1]
    assert bpp == pytest.approx(bits / (150 * 200), rel=1e-6)
    assert (validate.reconstruct(model, picture, whole=True)[0] == whole).all()
    assert validate.look(model, picture).shape == (128, 3 * 128, 3)


def test_held_out_pictures_that_are_not_there_for_the_moment_are_no_fewer_pictures(
    write_recipe, held_out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "judges"
    shutil.copytree(held_out, folder)
    (folder / "._one.png").write_bytes(b"Mac OS X")
    (folder / "notes.txt").symlink_to("nowhere")
    run = load_recipe(write_recipe(), [f"data.validation={folder}"]).runs()[0]
    assert [picture.name for picture in held_out_pictures.held_out(run)] == ["one"]
    assert "left out" in caplog.text
    assert "._one.png" in caplog.text
    for name, make in {"two.png": lambda path: path.symlink_to("disk"), "p.png": os.mkfifo}.items():
        held_out_pictures._check_others.cache_clear()
        make(folder / name)
        with pytest.raises(RecipeError, match=f"data.validation: .*{name} is"):
            held_out_pictures.held_out(run)
        (folder / name).unlink()
