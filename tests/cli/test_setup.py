"""`make setup`: what it says of pip's output, and pip in the place of a `uv` that fails."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PIP = """\
Obtaining file:///home/user/cca-pipeline
Collecting torch>=2.8
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (900.5 MB)
WARNING: Location 'x' is ignored
Collecting numpy>=2.0
  Downloading numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl (17.1 MB)
Installing collected packages: numpy, torch
"""


@pytest.fixture
def setup(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_script", root / ".ci" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_large_downloads_are_named_and_warnings_are_not_shown(
    setup: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    narrator = setup.Narrator()
    for line in PIP.splitlines():
        narrator.hear(line)
    assert capsys.readouterr().out.splitlines() == [
        "setup: downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl, 900 MB",
        "setup: unpacking 2 packages; this is the longest silence, a minute or two",
    ]
    assert len(narrator.packages) == 2
    assert narrator.megabytes == pytest.approx(917.6)


def test_pip_takes_over_from_a_uv_that_fails(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "bin" / "uv", "echo 'no such index'; exit 2")
    program(tmp_path / "venv" / "bin" / "python", 'echo "$PIP_CONSTRAINT" > "$0.constraints"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    assert setup.install(tmp_path / "venv", ["a.txt", "b.txt"], gpu=False, verbose=False)
    given = (tmp_path / "venv" / "bin" / "python.constraints").read_text()
    assert given == "a.txt b.txt\n"
    assert "no such index" in (tmp_path / "venv" / "setup.log").read_text()


def test_a_failure_shows_the_end_of_the_log(
    setup: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program(tmp_path / "venv" / "bin" / "python", "echo 'no space left on device'; exit 1")
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert not setup.install(tmp_path / "venv", [], gpu=False, verbose=False)
    assert "no space left on device" in capsys.readouterr().err


def test_an_old_python_is_refused(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["setup.py", "somewhere"])
    monkeypatch.setattr(setup.sys, "version_info", (3, 10))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is needed"):
        setup.main()
