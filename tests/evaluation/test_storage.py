"""What an evaluation may replace: its own folder, and nothing else in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.evaluation import EvaluationError
from pipeline.evaluation.storage import MARK, check_folder


def test_only_what_is_ours_may_be_replaced(tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    letters.mkdir()
    check_folder(letters)
    check_folder(tmp_path / "new")
    (letters / "dear.txt").write_text("x")
    with pytest.raises(EvaluationError, match="holds other things"):
        check_folder(letters)
    with pytest.raises(EvaluationError, match="is a file"):
        check_folder(letters / "dear.txt")
    (letters / MARK).touch()
    with pytest.raises(EvaluationError, match=r"holds dear\.txt"):
        check_folder(letters)
    check_folder(letters, force=True)
    with pytest.raises(EvaluationError, match="which is evaluated"):
        check_folder(letters, [letters / "dear.txt"], force=True)
    (letters / "dear.txt").unlink()
    check_folder(letters)
    (letters / "streams" / "model").mkdir(parents=True)
    (letters / "streams" / "model" / "a.cca").touch()
    check_folder(letters)
    (letters / "streams" / "model" / "a.png").touch()
    with pytest.raises(EvaluationError, match=r"a\.png"):
        check_folder(letters)
