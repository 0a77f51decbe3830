"""Training in places that are not as one's own: names, locales, homes, limits, modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What Python would import from the working folder, were that on its path.
SHADOWING = ("random.py", "logging.py", "shards.py", "recipes/__init__.py", "pipeline/__init__.py")
PLACES = {
    "LC_ALL": "C",
    "LANG": "C",
    "PYTHONUTF8": "0",
    "HOME": "/proc/nohome",
    "TMPDIR": "/nonexistent/tmp",
    "OMP_NUM_THREADS": "1",
}


@pytest.mark.nightly
@pytest.mark.slow
def test_a_hostile_place_trains_as_any_other(write_recipe, tmp_path: Path) -> None:
    recipe = write_recipe()
    words = [str(recipe), "data.workers=1", "stages.0.steps=2"]
    folder = tmp_path / "läufe 日本"
    for name in SHADOWING:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise SystemExit('not mine')\n")
    (folder / "räzept.yaml").write_text(recipe.read_text())
    program = Path(sys.executable).with_name("pipeline")
    command = [str(program), "train", "räzept.yaml", *words[1:], "out=höhe 1"]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 64; exec "$@"', "sh", *command],
        cwd=folder,
        env={**os.environ, **PLACES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "höhe 1" / "base" / "model.safetensors").is_file()


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1"])
def test_a_locale_without_utf8_is_left(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.common.locale import insist_on_utf8

    begun: list[list[str]] = []
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: encoding)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-P", "program", "größe"])
    monkeypatch.setattr(os, "execv", lambda _, words: begun.append(words))
    monkeypatch.setenv("PYTHONUTF8", "0")
    insist_on_utf8()
    assert begun == [[sys.executable, "-X", "utf8", "-P", "program", "größe"]]
    assert os.environ["PYTHONUTF8"] == "1"
    # Once is enough, whatever this Python makes of it.
    monkeypatch.setattr(sys, "_xoptions", {"utf8": True})
    insist_on_utf8()
    assert len(begun) == 1
