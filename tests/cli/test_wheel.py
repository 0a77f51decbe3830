"""The built wheel, installed where there is no checkout, does the whole main job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from PIL import Image

ROOMS = ("pipeline", "shards", "recipes", "orchestration")
# One process, for each start of Python with torch and MLflow takes seconds.
RUN_ALL = """
import json, sys
from pipeline.cli.main import main
for line in json.load(sys.stdin):
    try:
        main(line.split())
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"pipeline {line}: exit code {end.code}")
import pipeline, shards, recipes, orchestration
print(*(room.__file__ for room in (pipeline, shards, recipes, orchestration)), sep="\\n")
"""
SHORT = (
    *("data.train=shards", "out=out", "data.validation_pictures=1", "stages.base.steps=2"),
    *("stages.base.crop=64", "stages.base.warmup=0"),
)
TRAINED = (
    "evaluate out/base --data one --out report --peers jpeg",
    "register out/base --name cca --alias challenger --metrics report/results.json",
    "promote cca --data one",
    "models cca",
    "lineage models:/cca@champion",
    "compress one/photo.png photo.cca --model models:/cca@champion",
    "decompress photo.cca photo.png --model models:/cca@champion",
    "schedule recipes/demo.yaml --on orchestration/profiles/local.yaml --dry-run",
    "schedule recipes/imagenet.yaml --on orchestration/profiles/slurm.yaml --dry-run",
    "schedule recipes/cca-paper.yaml --on orchestration/profiles/kubernetes.yaml --dry-run",
    "inspect shards --html shards.html",
    "recipes recipes/accelerate/zero2.yaml",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """An environment with the wheel and, behind it, the packages that it needs; no checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*ROOMS, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(exist_ok=True)
        copy(root / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    _call([sys.executable, "-c", build, str(folder)], source)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", symlinks=True)
    program = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(program), "install", "--quiet"]
    _call([*install, "--no-index", "--no-deps", "--no-compile", str(wheel)], folder)
    (site,) = (folder / "env" / "lib").glob("python3*/site-packages")
    # A path in a .pth file is searched last, and its own .pth files (the checkout's) are not read.
    (site / "needed.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return program


def _call(words: list[str], folder: Path, text: str = "") -> str:
    """Run a program in `folder`, which must succeed; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTHON"))}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=folder, env=environment, input=text, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_main_job_without_a_checkout(python: Path, tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "one").mkdir()
    with Image.open(pictures / "kodak" / "kodim23.webp") as picture:
        picture.crop((100, 100, 292, 292)).save(tmp_path / "one" / "photo.png")
    pipeline = str(python.parent / "pipeline")
    words = ["shard", "recipes/demo/pictures/train", "--out", "shards"]
    _call([pipeline, *words, "--augment", "shards/augment/lic.yaml", "--min-side", "64"], tmp_path)
    launch = [str(python), "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
    train = ["-m", "recipes.train", "recipes/demo.yaml", *SHORT, "--stage", "base"]
    _call([*launch, *train], tmp_path)
    # A launch by the command finds the work done.
    _call([pipeline, "train", *train[2:]], tmp_path)
    said = _call([str(python), "-c", RUN_ALL], tmp_path, json.dumps(TRAINED))
    places = [Path(line) for line in said.splitlines()[-len(ROOMS) :]]
    assert all(place.is_relative_to(python.parents[1]) for place in places)
    assert (tmp_path / "photo.png").is_file()
