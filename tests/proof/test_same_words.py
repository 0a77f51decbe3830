"""The proof of equal words, at its shortest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.proof.same_words import against, main


@pytest.mark.nightly
def test_every_way_of_adding_up_gives_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"same_words --pictures 0 --latents 1 --out {tmp_path / 'words.json'}"
    monkeypatch.setattr(sys, "argv", line.split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.count(": 0 of ") == 4
    digests = json.loads((tmp_path / "words.json").read_text())
    assert len(digests) == 4
    assert against(digests, tmp_path / "words.json") == 0


def test_digests_that_differ_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"one": "a", "two": "b"}))
    assert against({"one": "a", "two": "b"}, file) == 0
    assert against({"one": "a", "two": "c"}, file) == 1
    assert against({"other": "a"}, file) == 1
