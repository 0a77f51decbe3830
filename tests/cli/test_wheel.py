"""The built wheel, installed where there is no checkout, does all that docs/quickstart.md shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline.codec.box import box_model
from tests.docs.commands import commands
from tests.patience import patience

ROOMS = ("pipeline", "shards", "recipes", "orchestration")
# One process, for each start of Python with torch and MLflow takes seconds.
RUN_ALL = """
import json, sys
from pipeline.cli.main import main
for words in json.load(sys.stdin):
    try:
        main(words)
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"pipeline {words}: exit code {end.code}")
import pipeline, shards, recipes, orchestration
print(*(room.__file__ for room in (pipeline, shards, recipes, orchestration)), sep="\\n")
"""
COMMANDS = """
import typer.main
from pipeline.cli.main import build
print(*typer.main.get_command(build()).commands)
"""
SHORT = [
    *("data.held_out=1", "evaluate_every=100", "stages.mse.rate_weight=[0.3,3.5,15]"),
    *("stages.base.steps=2", "stages.mse.steps=1", "stages.ms-ssim.steps=1"),
    *("stages.base.crop=64", "stages.mse.crop=64", "stages.base.warmup=0"),
    *("stages.base.batch=1", "stages.mse.batch=1", "stages.ms-ssim.batch=1"),
]
LARGEST = 20_000_000  # bytes of the wheel
# Beside what the page shows.
MORE = (
    "schedule recipes/demo.yaml --on orchestration/profiles/local.yaml --dry-run",
    "schedule recipes/imagenet.yaml --on orchestration/profiles/slurm.yaml --dry-run",
    "schedule recipes/cca-paper.yaml --on orchestration/profiles/kubernetes.yaml --dry-run",
    "shard recipes/demo/pictures/train --out more --augment shards/augment/lic.yaml --dry-run",
    "recipes recipes/accelerate/zero2.yaml",
    "doctor",
)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """An environment with the wheel and, behind it, the packages that it needs; no checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in copied(root / "Dockerfile"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(exist_ok=True)
        copy(root / name, source / name)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    _call([sys.executable, "-c", build, str(folder)], source)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        weights = content.getinfo("pipeline/codec/box/small.safetensors")
    assert weights.file_size == box_model().stat().st_size
    assert wheel.stat().st_size < LARGEST
    venv.create(folder / "env", symlinks=True)
    program = folder / "env" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(program), "install", "--quiet"]
    _call([*install, "--no-index", "--no-deps", "--no-compile", str(wheel)], folder)
    (site,) = (folder / "env" / "lib").glob("python3*/site-packages")
    # A path in a .pth file is searched last, and its own .pth files (the checkout's) are not read.
    (site / "needed.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return program


def copied(dockerfile: Path) -> list[str]:
    """Return what the Dockerfile's first stage copies to build the wheel from."""
    stage = dockerfile.read_text().split("\nFROM ")[1]
    lines = re.findall(r"^COPY (.+) \S+$", stage, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def _call(words: list[str], folder: Path, text: str = "") -> str:
    """Run a program in `folder`, which must succeed; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTHON"))}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=patience(400),
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_dockerfile_is_linted(root: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint has no wheel for this machine")
    _call([str(hadolint), str(root / "Dockerfile")], root)


# Commands that the image's environment must be able to run, on one picture.
IMAGE = (
    "doctor",
    "compress photo.png photo.cca",
    "decompress photo.cca decoded.png",
    "schedule recipes/cca-paper.yaml --on orchestration/profiles/kubernetes.yaml --dry-run",
)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(patience(3600))
def test_what_the_image_installs_runs_every_command(
    python: Path, root: Path, tmp_path: Path, pictures: Path
) -> None:
    """The last stage of the Dockerfile, in an environment that has no package before."""
    text = (root / "Dockerfile").read_text().split("\nFROM ")[2]
    (extras,) = re.findall(r'"\$\(echo /wheels/\*\.whl\)(\[.+\])"', text)
    (wheel,) = python.parents[2].glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    image = tmp_path / "env" / "bin" / "python"
    constraints = [root / ".ci" / f"{name}constraints.txt" for name in ("", "cpu-")]
    install = [str(image), "-m", "pip", "install", "--quiet"]
    install += [word for path in constraints for word in ("--constraint", str(path))]
    subprocess.run([*install, f"{wheel}{extras}"], cwd=tmp_path, check=True)
    _call([str(image), "-m", "pip", "check"], tmp_path)
    with Image.open(pictures / "kodak" / "kodim23.webp") as picture:
        picture.crop((100, 100, 292, 292)).save(tmp_path / "photo.png")
    listed = _call([str(image), "-c", COMMANDS], tmp_path).split()
    typed = [*([name, "--help"] for name in listed), *(line.split() for line in IMAGE)]
    _call([str(image), "-c", RUN_ALL], tmp_path, json.dumps(typed))
    with Image.open(tmp_path / "decoded.png") as decoded:
        assert decoded.size == (192, 192)


@pytest.mark.slow
def test_the_quick_start_without_a_checkout(
    python: Path, root: Path, tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "one").mkdir()
    with Image.open(pictures / "kodak" / "kodim23.webp") as picture:
        picture.crop((100, 100, 276, 276)).save(tmp_path / "one" / "photo.png")
    shown = [command.words for command in commands(root / "docs" / "quickstart.md")]
    typed = [_smaller(words[1:]) for words in shown if words[0] == "pipeline" and ">" not in words]
    training = next(i for i, words in enumerate(typed) if words[0] == "train")
    pipeline = str(python.parent / "pipeline")
    _call([str(python), "-c", RUN_ALL], tmp_path, json.dumps(typed[:training]))
    _call([pipeline, *typed[training]], tmp_path)
    rest = [*typed[training + 1 :], *(line.split() for line in MORE)]
    said = _call([str(python), "-c", RUN_ALL], tmp_path, json.dumps(rest))
    places = [Path(line) for line in said.splitlines()[-len(ROOMS) :]]
    assert all(place.is_relative_to(python.parents[1]) for place in places)
    with Image.open(tmp_path / "photo.png") as decoded:
        assert decoded.size == (176, 176)


def _smaller(words: tuple[str, ...]) -> list[str]:
    """Return a command of the page made short: few steps, and one small picture for Kodak's."""
    kodak = "recipes/demo/pictures/kodak"
    small = [word.replace(f"{kodak}/kodim23.webp", "one/photo.png") for word in words]
    return [word.replace(kodak, "one") for word in small] + (SHORT if words[0] == "train" else [])
