"""The judge of odd pictures: what is coded, what is refused, and what must not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.proof import odd_pictures
from tests.proof.odd_pictures import judged, main


def turned(path: Path) -> Path:
    """Write a picture whose upright form is 24 wide and 32 high, bright at one end."""
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.tile(np.linspace(255, 0, 32).astype(np.uint8), (24, 1))
    Image.fromarray(ramp).convert("RGB").save(path, exif=exif)
    return path


def test_files_are_coded_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned(tmp_path / "turned.png")
    (tmp_path / "words.png").write_text("these are words")
    assert main([str(tmp_path)]) == 0
    assert "2 files: 1 coded, 1 refused" in capsys.readouterr().out


def test_the_judge_finds_what_must_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = turned(tmp_path / "turned.png")

    def wrong(words: list[str]) -> None:
        Path(words[2]).write_bytes(b"stream")
        if words[0] == "decompress":
            with Image.open(source) as picture:
                found.transform(picture).save(words[2])

    class found:  # noqa: N801 - what the decoder does wrong
        transform = staticmethod(lambda picture: picture.convert("RGB"))

    monkeypatch.setattr(odd_pictures, "pipeline", wrong)
    (tmp_path / "one").mkdir()
    assert judged(source, tmp_path / "one")[0] == "wrong"  # not upright: another size
    found.transform = staticmethod(lambda picture: picture.transpose(Image.Transpose.ROTATE_90))
    (tmp_path / "two").mkdir()
    kind, said = judged(source, tmp_path / "two")
    assert (kind, said[:6]) == ("wrong", "turned")

    def broken(words: list[str]) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(odd_pictures, "pipeline", broken)
    (tmp_path / "three").mkdir()
    assert "ended with 1" in judged(source, tmp_path / "three")[1]
