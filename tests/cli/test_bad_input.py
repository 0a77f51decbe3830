"""Wrong input, over all commands: one sentence that says what and where, exit code 2, no debris."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from pipeline.cli.main import build, main

# What is typed ({} is replaced by the folder of the fixture) and words that the answer must hold.
WRONG = [
    ("shard {}/empty --out {}/out", ("empty", "picture")),
    ("shard {}/nowhere --out {}/out", ("nowhere",)),
    ("shard {}/pictures --out {}/out --shard-size 3QB", ("3QB",)),
    ("shard {}/pictures --out {}/out --part 3/2", ("3/2",)),
    ("shard {}/pictures --out {}/shards --seed 7", ("seed",)),
    ("shard {}/others --out {}/shards", ("{}/shards",)),
    ("shard {}/pictures --out {}/out --augment {}/nowhere.yaml", ("nowhere.yaml",)),
    ("shard {}/pictures --out {}/out --augment {}/broken.yaml", ("broken.yaml",)),
    ("shard {}/pictures --out {}/out --split train=0.9,val=0.9", ("1.8",)),
    ("verify {}/empty", ("empty",)),
    ("inspect {}/nowhere", ("nowhere",)),
    ("train {}/nowhere.yaml", ("nowhere.yaml",)),
    ("train {}/recipe.yaml stages.0.stepz=3", ("stepz", "steps")),
    ("train {}/recipe.yaml seed=minus", ("seed",)),
    ("train {}/recipe.yaml --stage finetune", ("finetune",)),
    ("train {}/recipe.yaml --stage base --rate-weight 9", ("9",)),
    ("train {}/broken.yaml", ("broken.yaml",)),
    ("train {}/words.txt", ("words.txt",)),
    ("train {}/recipe.yaml --accelerate {}/nowhere.yaml", ("nowhere.yaml",)),
    ("train {}/recipe.yaml stages.base.variable_rate=[1,2]", ("variable_rate",)),
    ("train {}/recipe.yaml stages.base.distortion=lpips", ("distortion",)),
    ("diff {}/recipe.yaml {}/nowhere", ("nowhere",)),
    ("calibrate {}/nowhere --data {}/pictures --out {}/out.safetensors", ("nowhere",)),
    (
        "calibrate {}/model.safetensors --data {}/empty --out {}/out.safetensors",
        ("empty",),
    ),
    ("evaluate {}/nowhere --data {}/pictures --out {}/out", ("nowhere",)),
    ("evaluate {}/model.safetensors --data {}/empty --out {}/out", ("empty",)),
    ("evaluate {}/words.txt --data {}/pictures --out {}/out", ("words.txt",)),
    (
        "evaluate {}/model.safetensors --data {}/pictures --out {}/out --peers jpg",
        ("jpg", "jpeg"),
    ),
    ("evaluate {}/model.safetensors --data {}/pictures --out {}/out --rates low", ("low",)),
    (
        "evaluate {}/model.safetensors --data {}/pictures --out {}/out --device tpu",
        ("tpu",),
    ),
    ("compress {}/words.txt {}/out.cca --model {}/model.safetensors", ("words.txt",)),
    ("compress {}/nowhere.png {}/out.cca --model {}/model.safetensors", ("nowhere.png",)),
    ("compress {}/picture.jpg {}/out.cca --model {}/nowhere", ("nowhere",)),
    ("compress {}/picture.jpg {}/out.cca --model {}/foreign.safetensors", ("foreign",)),
    (
        "compress {}/picture.jpg {}/out.cca --model {}/model.safetensors --rate 0.5",
        ("rate",),
    ),
    (
        "compress {}/picture.jpg {}/out.cca --model {}/model.safetensors --max-memory 3QB",
        ("3QB",),
    ),
    ("compress {}/picture.jpg {}/" + "n" * 300 + ".cca", ("too long",)),
    ("compress {}/picture.jpg {}/empty", ("--out-dir",)),
    ("decompress {}/words.txt {}/out.png --model {}/model.safetensors", ("words.txt",)),
    ("decompress {}/short.cca {}/out.png --model {}/model.safetensors", ("short.cca",)),
    ("decompress {}/picture.cca {}/out.png --model {}/other.safetensors", ("model",)),
    ("import {}/words.txt --out {}/out", ("words.txt",)),
    ("import {}/model.safetensors --out {}/out", ("model.safetensors",)),
    ("export {}/empty --out {}/out", ("empty has no complete checkpoint: ",)),
    ("register {}/nowhere --name cca", ("nowhere",)),
    ("register {}/model.safetensors --name a/b", ("a/b",)),
    ("register {}/model.safetensors --name cca --metrics {}/words.txt", ("words.txt",)),
    ("models nothing-of-the-kind", ("nothing-of-the-kind",)),
    ("promote nothing-of-the-kind --data {}/pictures", ("nothing-of-the-kind",)),
    ("lineage models:/nothing/1", ("nothing",)),
    ("lineage {}/nowhere", ("nowhere",)),
    ("deliver {}/empty", ("empty",)),
    ("schedule {}/nowhere.yaml --on {}/recipe.yaml --dry-run", ("nowhere.yaml",)),
    ("schedule {}/recipe.yaml --on {}/recipe.yaml --dry-run", ("recipe.yaml",)),
    ("status no-such-plan", ("no-such-plan",)),
    ("logs no-such-plan train-base", ("no-such-plan",)),
    ("cancel no-such-plan", ("no-such-plan",)),
    ("retry no-such-plan", ("no-such-plan",)),
    ("recipes recipes/imagnet.yaml", ("recipes/imagenet.yaml",)),
    ("doctor --jsn", ("--json",)),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A folder with good things and bad ones."""
    import torch
    from safetensors.torch import save_file

    from pipeline.codec import CCAConfig, CCAModel, save_model

    folder = tmp_path_factory.mktemp("world")
    (folder / "empty").mkdir()
    for name, chosen in (("pictures", "coffee.jpg"), ("others", "rocket.jpg")):
        (folder / name).mkdir()
        shutil.copy(pictures / "train" / chosen, folder / name)
    shutil.copy(pictures / "train" / "coffee.jpg", folder / "picture.jpg")
    (folder / "words.txt").write_text("these are words\n")
    (folder / "broken.yaml").write_text("name: [\n")
    (folder / "recipe.yaml").write_text(
        "name: r\nout: out\nmodel: tiny\ndata: {train: shards}\n"
        "stages: [{name: base, rate_weight: 1, steps: 1, crop: 64}]\n"
    )
    for seed, name in enumerate(("model", "other")):
        torch.manual_seed(seed)
        save_model(CCAModel(CCAConfig.tiny()), folder / f"{name}.safetensors")
    save_file({"weight": torch.zeros(3)}, folder / "foreign.safetensors")
    for line in (
        f"shard {folder}/pictures --out {folder}/shards",
        f"compress {folder}/picture.jpg {folder}/picture.cca --model {folder}/model.safetensors",
    ):
        with pytest.raises(SystemExit) as stopped:
            main(line.split())
        assert not stopped.value.code
    (folder / "short.cca").write_bytes((folder / "picture.cca").read_bytes()[:-9])
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An empty tracking store; making one takes a second, so all lines share it."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def test_no_command_is_left_out() -> None:
    group: Any = typer.main.get_command(build())
    assert set(group.commands) == {line.split()[0] for line, _ in WRONG}


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[line for line, _ in WRONG])
def test_wrong_input_gets_a_sentence(
    line: str,
    words: tuple[str, ...],
    world: Path,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    before = _files(world)
    with pytest.raises(SystemExit) as stopped:
        main(line.replace("{}", str(world)).split())
    answer = capfd.readouterr().err
    assert stopped.value.code == 2, answer
    assert "Traceback" not in answer
    for word in words:
        assert word.replace("{}", str(world)) in answer
    assert _files(world) == before


# Wrong signs, types and ends; places that are files, folders, or nowhere.
ODD = ["", "-1", "0", "nan", "inf", "1e400", "x", "-1GB", "0GB", "words.txt", "empty",
       "empty/none/x", "\u00e9\u2028", "9" * 30, "meta", "cpu:7", "[1", "=", "{}"]  # fmt: skip


def odd_lines() -> Iterator[list[str]]:
    """Yield every option of every command once, with inputs that are nothing and an odd value.

    The values are dealt out in turn: their number and that of the options have no common factor.
    """
    group: Any = typer.main.get_command(build())
    values = itertools.cycle(ODD)
    for name, command in group.commands.items():
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        inputs = [p for p in command.params if p.param_type_name == "argument" and p.required]
        for option in options:
            others = [o for o in options if o.required and o is not option]
            words = [name, *["words.txt"] * len(inputs), *(f"{o.opts[0]}=out" for o in others)]
            yield [*words, option.opts[0] if option.is_flag else f"{option.opts[0]}={next(values)}"]


@pytest.mark.slow
def test_odd_values_of_every_option_get_a_sentence(
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    (tmp_path / "words.txt").write_text("these are words\n")
    (tmp_path / "empty").mkdir()
    wrong = []
    # `register` may well register the package's own model under an odd name, which takes a while.
    for words in (line for line in odd_lines() if line[0] != "register"):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        answer = capfd.readouterr().err
        unforeseen = "run again with --debug" in answer or "Traceback" in answer
        if stopped.value.code not in (None, 0, 2) or unforeseen:
            wrong.append((words, stopped.value.code, answer[-200:]))
    assert wrong == []


@pytest.mark.parametrize(
    "words", [["compress", "", "out"], ["decompress", "picture.cca", ""], ["shard", ".", "--out="]]
)
def test_an_empty_word_is_not_the_folder_that_one_is_in(
    words: list[str],
    world: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    before = _files(world)
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "an argument is empty" in capfd.readouterr().err
    assert _files(world) == before


@pytest.mark.parametrize("data", ["words.txt", "nowhere"])
def test_evaluation_wants_a_folder_of_pictures(
    data: str, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = f"evaluate {world}/model.safetensors --data {world}/{data} --out {tmp_path}/out"
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    assert data in capfd.readouterr().err


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}
