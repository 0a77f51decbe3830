"""The one rule for files that commands write, over every kind of target."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.atomic import write_bytes
from pipeline.common.special import descriptor_of, is_special
from pipeline.common.targets import TargetError, check_target, check_writable

OURS = b"ours"


def _make(kind: str, path: Path, source: Path) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "empty":
        path.touch()
    elif kind == "ours":
        path.write_bytes(OURS)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to(os.devnull)
    elif kind == "source":
        os.link(source, path)


def _is_ours(path: Path) -> bool:
    return path.read_bytes() == OURS


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(
        ["nothing", "file", "empty", "ours", "folder", "pipe", "device", "source"]
    ),
    name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=80),
    links=st.integers(0, 3),
    force=st.booleans(),
)
def test_what_is_not_the_commands_own_is_kept(
    tmp_path_factory: pytest.TempPathFactory, kind: str, name: str, links: int, force: bool
) -> None:
    folder = tmp_path_factory.mktemp("targets")
    source = folder / "source"
    source.write_text("read")
    (folder / "in").mkdir()
    path = folder / "in" / f"{name}.x"
    if len(os.fsencode(path.name)) > 255:
        return
    _make(kind, path, source)
    for number in range(links):
        link = folder / f"link{number}"
        link.symlink_to(path)
        path = link
    allowed = kind in ("nothing", "empty", "ours", "pipe", "device") or (kind == "file" and force)
    if allowed:
        check_target(path, "write", _is_ours, sources=[source], force=force)
        assert is_special(path) == (kind in ("pipe", "device"))
        if kind != "pipe":
            write_bytes(path, b"new")
            assert path.is_symlink() == (links > 0 or kind == "device")
    else:
        with pytest.raises(TargetError) as refused:
            check_target(path, "write", _is_ours, sources=[source], force=force)
        assert str(path) in str(refused.value)
    assert source.read_text() == "read"


def test_names_and_folders_that_can_not_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "lost").symlink_to(tmp_path / "none" / "x")
    for bad in ("n" * 256, "loop", "file/x", "none/x", "lost"):
        with pytest.raises(TargetError):
            check_target(tmp_path / bad, "write", _is_ours)
        if bad in ("none/x", "lost"):
            check_target(tmp_path / bad, "write", _is_ours, make_folder=True)
    check_target(tmp_path / ("n" * 255), "write", _is_ours)


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which no files can be made; root may write anywhere, so the system is asked."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    (folder / "ours").write_bytes(OURS)
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        real = os.access
        monkeypatch.setattr(
            os, "access", lambda path, *a, **k: Path(path) != folder and real(path, *a, **k)
        )
        monkeypatch.setattr(os, "supports_effective_ids", {*os.supports_effective_ids, os.access})
    return folder


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    read_only: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(read_only / "new")
    for path in (read_only / "new", read_only / "ours", tmp_path / "link"):
        with pytest.raises(TargetError, match="no files can be made in the folder"):
            check_target(path, "write", _is_ours, force=True)
    with pytest.raises(TargetError, match=str(read_only)):
        check_target(read_only / "a" / "b", "write", _is_ours, make_folder=True)
    with pytest.raises(TargetError, match="is a file"):
        check_writable(read_only / "ours" / "inside")


def test_an_open_file_of_this_process_is_written_through(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb+", buffering=0) as file:
        file.write(b"before ")
        for name in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}"):
            if not Path(name).exists():
                continue
            check_target(Path(name), "write", _is_ours)
            assert descriptor_of(Path(name)) == file.fileno()
            write_bytes(Path(name), b"new ")
    assert (tmp_path / "log").read_bytes().startswith(b"before new ")
    with pytest.raises(TargetError, match="is closed"):
        check_target(Path("/dev/fd/999"), "write", _is_ours)
    assert list(tmp_path.iterdir()) == [tmp_path / "log"]
