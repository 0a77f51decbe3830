"""Folders and files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluation import EvaluationError
from pipeline.evaluation.storage import MARK, whole_folder, write_bytes


def write_file(folder: Path) -> Path:
    write_bytes(folder / MARK, b"{}")
    return folder / MARK


def test_a_folder_appears_only_when_its_block_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "report"
    with pytest.raises(FileExistsError), whole_folder(out) as folder:
        write_bytes(write_file(folder) / "below", b"")
    assert list(tmp_path.iterdir()) == []
    with whole_folder(out) as folder:
        write_bytes(folder / MARK, b"{}")
        assert not out.exists()
    assert (out / MARK).read_bytes() == b"{}"


def test_an_earlier_evaluation_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "report"
    for text in (b"old", b"new"):
        with whole_folder(out) as folder:
            write_bytes(folder / MARK, text)
            write_bytes(folder / text.decode(), b"")
    assert sorted(path.name for path in out.iterdir()) == ["new", MARK]
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    with (
        pytest.raises(EvaluationError, match="holds other things"),
        whole_folder(tmp_path / "letters"),
    ):
        pass
    with (
        pytest.raises(EvaluationError, match="is a file"),
        whole_folder(tmp_path / "letters" / "dear.txt"),
    ):
        pass
