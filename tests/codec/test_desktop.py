"""What desktops need: a MIME type that names `.cca` files, and thumbnails of them."""

from __future__ import annotations

import configparser
import importlib
import shutil
import subprocess
import tomllib
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.codec.bitstream import MAGIC
from pipeline.desktop.thumbnail import main
from pipeline.pillow import MIME, register_cca_opener

SHARE = Path(str(resources.files("pipeline.desktop"))) / "share"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("desktop") / "photo.cca"
    register_cca_opener()
    Image.linear_gradient("L").resize((96, 48)).convert("RGB").save(path)
    return path


def test_a_thumbnail_is_a_png_of_at_most_the_size(photo: Path, tmp_path: Path) -> None:
    assert main([str(photo), str(tmp_path / "no-ending"), "32"]) == 0
    with Image.open(tmp_path / "no-ending") as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("PNG", (32, 16))
        assert np.ptp(np.asarray(thumbnail.convert("L"))) > 150


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photo.cca", "out.png"], "cca-thumbnail IN.cca"),
        (["photo.cca", "out.png", "0"], "cca-thumbnail IN.cca"),
        (["photo.cca", "out.png", "-3"], "cca-thumbnail IN.cca"),
        (["photo.cca", "out.png", "9" * 30], "cca-thumbnail IN.cca"),
        (["picture.png", "out.png", "32"], "is no .cca file"),
        (["damaged.cca", "out.png", "32"], "damaged.cca"),
        (["absent.cca", "out.png", "32"], "absent.cca"),
        (["photo.cca", "no/folder/out.png", "32"], "no/folder"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    words: list[str],
    said: str,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(photo, "photo.cca")
    Path("damaged.cca").write_bytes(photo.read_bytes()[:-9])
    Image.new("RGB", (8, 8)).save("picture.png")
    before = sorted(Path().iterdir())
    assert main(words) == 2
    assert sorted(Path().iterdir()) == before
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_the_mime_type_says_what_the_plugin_and_the_format_say() -> None:
    space = "{http://www.freedesktop.org/standards/shared-mime-info}"
    kind = ElementTree.parse(SHARE / "mime/packages/cca.xml").getroot().find(f"{space}mime-type")
    assert kind is not None
    match = next(kind.iter(f"{space}match"))
    assert kind.get("type") == MIME
    assert match.get("value", "").encode().decode("unicode_escape").encode("latin-1") == MAGIC


def test_the_thumbnailer_calls_a_program_of_the_package() -> None:
    entry = configparser.ConfigParser(interpolation=None)
    entry.read(SHARE / "thumbnailers/cca.thumbnailer")
    said = entry["Thumbnailer Entry"]
    assert said["mimetype"].rstrip(";") == MIME
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, name = project["scripts"][said["exec"].split()[0]].split(":")
    assert getattr(importlib.import_module(module), name) is main


@pytest.mark.skipif(
    not shutil.which("update-mime-database") or not shutil.which("xdg-mime"),
    reason="the desktop's programs are not here",
)
def test_the_desktop_s_own_programs_take_the_type(photo: Path, tmp_path: Path) -> None:
    shutil.copytree(SHARE, tmp_path / "share")
    subprocess.run(["update-mime-database", tmp_path / "share/mime"], check=True)
    assert f"50:{MIME}:*.cca" in (tmp_path / "share/mime/globs2").read_text()
    assert MAGIC in (tmp_path / "share/mime/magic").read_bytes()
