"""The examples of `docs/streaming.md` run."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.shards.made import numbered, write_split


@pytest.mark.slow
def test_the_examples_run(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_split(tmp_path / "shards-out", [12, 12], numbered(24))
    text = (root / "docs" / "streaming.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 4
    for example in examples:
        names: dict[str, Any] = {}
        exec(example, names)
        if "augment" in names:
            batch = next(iter(names["batches"]))
            assert batch.images.shape == (8, 3, 256, 256)
