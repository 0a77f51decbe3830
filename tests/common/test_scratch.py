"""Folders of a user's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.common.errors import UsageError
from pipeline.common.scratch import cache_folder, private_folder


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_private_folder_is_its_users_alone(tmp_path: Path) -> None:
    folder = private_folder("work")
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert private_folder("work") == folder
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "writable", "another's"])
def test_what_may_be_anothers_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / f"work-{os.getuid()}"
    if kind == "file":
        folder.touch()
    elif kind in ("link", "dangling"):
        folder.symlink_to(tmp_path if kind == "link" else tmp_path / "nowhere")
    else:
        folder.mkdir()
        if kind == "writable":
            folder.chmod(0o777)
        elif os.getuid():
            pytest.skip("needs the right to give a folder away")
        else:
            os.chown(folder, 12345, 12345)
    with pytest.raises(UsageError, match="not a folder of yours alone"):
        private_folder("work")


def test_the_cache_goes_where_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("models") == tmp_path / "cca-pipeline" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "cca-pipeline"
