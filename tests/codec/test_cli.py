"""The commands, as typed: results, sentences and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.cli.coding import Options
from pipeline.cli.main import main
from pipeline.codec import CCAModel, save_model
from pipeline.codec.architectures.cca.published import published_names
from tests.codec.conftest import SMALL, make_model


@pytest.fixture
def place(tmp_path: Path, model: CCAModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a picture and a model."""
    monkeypatch.chdir(tmp_path)
    save_model(model, tmp_path / "model.safetensors")
    Image.effect_noise((90, 70), 60).convert("RGB").save("in.png")
    return tmp_path


def _run(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leaving:
        main(line.split())
    captured = capsys.readouterr()
    return int(leaving.value.code or 0), captured.out, captured.err


def test_there_and_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "compress in.png a.cca --model model.safetensors --verify --json"
    code, out, _ = _run(line, capsys)
    assert code == 0
    result = json.loads(out)
    size = (place / "a.cca").stat().st_size
    assert result["bytes"] == size
    assert result["bpp"] == pytest.approx(8 * size / (90 * 70))
    code, out, _ = _run("decompress a.cca out.png", capsys)
    assert (code, out) == (0, "out.png: 90 x 70 pixels\n")
    assert Image.open("out.png").size == (90, 70)
    (place / "cut.cca").write_bytes((place / "a.cca").read_bytes()[:200])
    code, out, _ = _run("decompress cut.cca cut.png --preview", capsys)
    assert code == 0
    assert "preview" in out


def test_import_makes_a_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(SMALL, seed=3)
    state = {published_names(model)[name]: p.detach() for name, p in model.named_parameters()}
    torch.save({"state_dict": state}, "published.pth.tar")
    code, out, _ = _run("import published.pth.tar --out imported --json", capsys)
    assert code == 0
    assert json.loads(out)["auxiliary"] is False
    assert _run("compress in.png b.cca --model imported", capsys)[0] == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("compress none.png x.cca --model model.safetensors", "no picture none.png"),
        ("compress model.safetensors x.cca --model model.safetensors", "not a picture"),
        ("compress in.png x.cca --model in.png", "not a model"),
        ("compress in.png x.cca --model model.safetensors --max-memory 1MB", "too little"),
        ("compress in.png x.cca --model model.safetensors --max-memory much", "not understood"),
        ("compress in.png x.cca --model model.safetensors --max-memory -1GB", "--max-memory"),
        ("compress empty x --model model.safetensors", "no pictures in empty"),
        ("decompress in.png x.png --model model.safetensors", "no .cca file"),
        ("decompress none.cca x.png --model model.safetensors", "no file none.cca"),
        ("decompress cut.cca x.png --model model.safetensors", "cut"),
        ("decompress a.cca x.png --model other.safetensors", "made with the model"),
        ("compress in.png none/x.cca --model model.safetensors", "no folder none"),
        ("compress in.png empty --model model.safetensors", "empty is a folder"),
        ("compress in.png x.cca --model model.safetensors --device abacus", "no device 'abacus'"),
        ("decompress a.cca none/x.png --model model.safetensors", "no folder none"),
        ("decompress empty x --model model.safetensors", "no .cca files in empty"),
        ("decompress empty x", "no .cca files in empty"),
        ("decompress empty", "name the folder to write"),
        ("compress in.png", "in.cca is there already"),
        ("compress in.png --quality 101", "from 0 to 100"),
        ("compress in.png --quality good", "lowest, low, medium, high, highest"),
        ("compress in.png --quality 50 --rate 1", "--quality and --rate"),
        ("compress in.png x.cca --size 100KB --model model.safetensors", "single rate"),
        ("compress in.png x.cca --size 100", "can't be held to 100 bytes"),
        ("compress in.png x.cca --bpp -1", "above 0"),
        ("compress in.png x.cca --bpp nan", "above 0"),
        ("compress in.png new/", "by --out-dir"),
        ("compress in.png new.webp", "has the ending of a picture"),
        ("compress in.png in.png", "named twice"),
        ("compress in.png in.png --out-dir x", "named twice"),
        ("compress in.png empty x", "can't all become x"),
        ("compress in.png --out-dir model.safetensors", "is a file"),
        ("compress empty model.safetensors", "files go to a folder"),
        ("decompress a.cca in.png --model model.safetensors", "in.png is there already"),
        ("decompress a.cca a.cca", "named twice"),
        ("compress in.png a.cca/x.cca", "no folder a.cca"),
        ("decompress a.cca x.doc --model model.safetensors", "suffix"),
        ("decompress lone/a.cca x.png", "--model"),
        ("import in.png --out x", "not a checkpoint"),
        ("import none --out x", "no checkpoint none"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    place: Path, line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _run("compress in.png a.cca --model model.safetensors", capsys)
    (place / "in.cca").write_text("no stream")
    save_model(make_model(SMALL, seed=5), place / "other.safetensors")
    (place / "cut.cca").write_bytes((place / "a.cca").read_bytes()[:200])
    (place / "empty").mkdir()
    if line.startswith("decompress lone"):
        (place / "lone").mkdir()
        (place / "a.cca").rename(place / "lone" / "a.cca")
        (place / "model.safetensors").unlink()
    before = sorted(place.rglob("*"))
    code, out, err = _run(line, capsys)
    assert code == 2
    assert words in " ".join(err.split())
    assert out == ""
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("device", "free", "wanted"),
    [("cuda", 9e9, 2), ("cuda:1", 9e9, 2), ("cuda", 7e9, 1), ("meta", 9e9, 1), ("nowhere", 9e9, 1)],
)
def test_a_gpu_with_memory_for_two_files_gets_two_at_once(
    monkeypatch: pytest.MonkeyPatch, device: str, free: float, wanted: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free), int(2 * free)))
    assert Options(4 * 10**9, None, device, False).at_once() == wanted
    assert Options(4 * 10**9, 5, device, False).at_once() == 5
