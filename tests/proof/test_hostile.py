"""Mutated files from outside: one clear error or none, in every format; see `hostile`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof.formats import FORMATS
from tests.proof.hostile import Format, judged, tried

INPUTS = 25
# Each of these makes shards or reads two recipes.
SLOWER = {"shard plan": 4, "plan rows": 4, "compared run": 6, "compared recipe": 6}


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_a_mutated_file_gives_one_sentence_or_nothing(one: Format, tmp_path: Path) -> None:
    wrong = list(tried(one, tmp_path / "place", iter(range(SLOWER.get(one.name, INPUTS))), seed=1))
    assert not wrong, wrong[0][1]


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_an_unchanged_file_is_read(one: Format, tmp_path: Path) -> None:
    one.use(one.make(tmp_path))


def test_the_judge_finds_what_must_not_be(tmp_path: Path) -> None:
    def raises(path: Path) -> None:
        raise KeyError(path.name)

    def leaves(path: Path) -> None:
        (path.parent / "canary-outside").read_bytes()

    (tmp_path / "canary-outside").write_bytes(b"")
    assert "KeyError" in (judged(raises, tmp_path / "x") or "")
    assert "left its folder" in (judged(leaves, tmp_path / "x") or "")
