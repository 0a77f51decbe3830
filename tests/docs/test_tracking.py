"""The way from nothing to a champion in docs/tracking.md, as typed, in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from recipes.train import main
from tests.docs.commands import commands, shorten
from tests.tracking.test_command import pipeline

OVERRIDES = (
    *("stages.0.steps=2", "stages.0.warmup=0", "stages.1.steps=1", "stages.2.steps=1"),
    *("stages.0.batch=1", "stages.1.batch=1", "stages.2.batch=1"),
    *("stages.0.crop=64", "stages.1.crop=64", "data.held_out=0"),
    "stages.1.rate_weight=[0.3, 3.5]",
)


@pytest.fixture
def reader(tmp_path: Path, root: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the checkout's recipes, its test pictures cut small, and a photograph."""
    demo = tmp_path / "recipes" / "demo" / "pictures"
    (demo / "kodak").mkdir(parents=True)
    (demo / "train").symlink_to(pictures / "train")
    for path in (root / "recipes").iterdir():
        if path.name != "demo":
            (tmp_path / "recipes" / path.name).symlink_to(path)
    # As small as MS-SSIM allows.
    with Image.open(pictures / "kodak" / "kodim23.webp") as picture:
        picture.crop((100, 100, 276, 276)).save(demo / "kodak" / "kodim23.png")
        picture.crop((0, 0, 80, 64)).save(tmp_path / "photo.png")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.nightly  # what it types is typed in other tests, too, but not in a row
def test_the_page_leads_from_nothing_to_a_champion(reader: Path, root: Path) -> None:
    said = {}
    for command in commands(root / "docs" / "tracking.md"):
        if command.reason:
            continue
        words = command.words
        # In this process, for each start of Python with torch and MLflow takes seconds.
        if words[:2] == ("pipeline", "train"):
            code, text = main(shorten(words, OVERRIDES)[2:]), ""
        else:
            code, text = pipeline(*words[1:])
        assert code == 0, f"{' '.join(words)}\n{text}"
        said[words[1]] = text

    assert "@champion moved to models:/cca/2: cca had no champion" in said["promote"]
    assert "rate weight" in said["models"]
    way = said["lineage"]
    assert way.index("models:/cca/2 @challenger @champion") < way.index("demo/mse/w3.5")
    assert way.index("demo/mse/w3.5") < way.index("demo/base") < way.rindex("from: ")
    assert (reader / "photo.cca").stat().st_size > 0
