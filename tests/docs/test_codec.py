"""The codec's page: its commands work as shown, in order, in one folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.cli.main import main
from pipeline.codec.architectures.cca.published import published_names
from tests.codec.conftest import SMALL, make_model
from tests.docs.commands import commands


@pytest.mark.slow
def test_the_codec_s_page_works_as_shown(
    root: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model(SMALL)
    state = {published_names(model)[name]: p.detach() for name, p in model.named_parameters()}
    torch.save({"state_dict": state}, "published.pth.tar")
    Path("pictures").mkdir()
    with Image.open(pictures / "kodak" / "kodim23.webp") as picture:
        small = picture.convert("RGB").crop((100, 100, 228, 228))
    for file in ("photo.jpg", "photo.png", "pictures/a.png", "pictures/b.jpg"):
        small.save(file)
    shown = commands(root / "docs" / "codec.md")
    assert len(shown) >= 7
    for command in shown:
        if command.words[0] == "pipeline":
            with pytest.raises(SystemExit) as ended:
                main(command.words[1:])
            assert not ended.value.code, command.words
        else:
            # In a shell whose `pipeline` is the one that is tested.
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            words = " ".join(command.words)
            subprocess.run(words, shell=True, check=True, env=os.environ | {"PATH": path})
    assert {file.name for file in Path("decoded").iterdir()} == {"a.png", "b.jpg.png"}
    with Image.open("preview.png") as preview:
        assert preview.size == small.size
