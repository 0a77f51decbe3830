"""What the tests of training share: small shards, a small recipe, a tracking store of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml
from PIL import Image

from shards.options import Options
from shards.run import shard

MICRO = {
    "latent_channels": 12,
    "slices": 3,
    "transform_channels": [8, 8, 8],
    "transform_blocks": [1, 1, 1],
    "context_channels": 8,
    "context_blocks": 1,
    "hyper_latent_channels": 8,
    "head_channels": [8, 8],
}

# Keys and values over those of `recipe`; returns the recipe's file.
WriteRecipe = Callable[..., Path]


@pytest.fixture(scope="session")
def photo_shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the repository's own photographs."""
    dest = tmp_path_factory.mktemp("shards")
    shard([str(pictures / "train")], dest, Options(split="train", shard_size=500_000), workers=1)
    return dest


@pytest.fixture(scope="session")
def held_out(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one picture of 192 x 192, which even MS-SSIM can be measured on."""
    folder = tmp_path_factory.mktemp("held-out")
    with Image.open(pictures / "kodak" / "kodim23.webp") as picture:
        picture.crop((100, 100, 292, 292)).save(folder / "one.png")
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tracking store; making one takes seconds, so all tests share it."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(autouse=True)
def tracking(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Track into the tests' store, whatever the user's settings are."""
    uri = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    return uri


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    taken = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in taken}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def write_recipe(photo_shards: Path, pictures: Path, tmp_path: Path) -> WriteRecipe:
    """Write a recipe of one stage, `base`, that trains in a second or two."""

    def write(**changes: object) -> Path:
        stage = {"name": "base", "rate_weight": 0.3, "steps": 6, "batch": 4, "crop": 64, "lr": 1e-3}
        recipe = {
            "name": "trial",
            "out": str(tmp_path / "runs"),
            "model": MICRO,
            "data": {"train": str(photo_shards), "workers": 0},
            "checkpoint": {"every_steps": 2},
            "stages": [stage],
        }
        path = tmp_path / "trial.yaml"
        path.write_text(yaml.safe_dump(recipe | changes))
        return path

    return write


@pytest.fixture
def launch(root: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start training as a user would, under `accelerate launch`, with one or two processes."""

    def start(
        arguments: Sequence[str | Path], *options: str, **variables: str
    ) -> subprocess.Popen[str]:
        accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
        fixed = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        fixed += ["--num_cpu_threads_per_process", "1"]
        script = [str(root / "recipes" / "train.py"), *map(str, arguments)]
        return subprocess.Popen(
            [*accelerate, *fixed, *options, *script],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


# What a training imports, mostly when it gets there: many times longer than the steps of a test.
PRELOADED = [
    *("accelerate", "recipes.train", "recipes.training.loop", "recipes.training.preflight"),
    *("torch._dynamo", "pipeline.codec.architectures.cca.model"),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "pipeline.tracking.delivery"),
]


def _train(
    arguments: Sequence[str], environment: dict[str, str], folder: Path, output: Path | None
) -> None:
    from recipes.train import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if output is not None:
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
    sys.exit(main(arguments))


@pytest.fixture
def start_training(tmp_path: Path) -> Iterator[Callable[..., BaseProcess]]:
    """Start training in a process of its own, forked from one that has imported what it needs.

    With `output`, what it says goes to that file; other keywords are variables of its environment.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    started: list[BaseProcess] = []

    def start(*arguments: str | Path, output: Path | None = None, **variables: str) -> BaseProcess:
        words = [str(word) for word in arguments]
        given = (words, os.environ | variables, tmp_path, output)
        process = context.Process(target=_train, args=given)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def start_ranks(
    start_training: Callable[..., BaseProcess], tmp_path: Path
) -> Callable[..., list[tuple[BaseProcess, Path]]]:
    """Start training as two ranks, as a launcher would; return each with the file of its output."""

    def start(*arguments: str | Path) -> list[tuple[BaseProcess, Path]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        common |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        started = []
        for rank in ("0", "1"):
            output = tmp_path / f"rank-{rank}.log"
            own = {"RANK": rank, "LOCAL_RANK": rank}
            process = start_training(*arguments, output=output, **common, **own)
            started.append((process, output))
        return started

    return start


@pytest.fixture
def zero_file(root: Path, tmp_path: Path) -> Callable[[int], str]:
    """Write the launch file of a DeepSpeed stage with whole paths; return its name."""

    def write(stage: int) -> str:
        config = yaml.safe_load((root / f"recipes/accelerate/zero{stage}.yaml").read_text())
        file = root / f"recipes/deepspeed/zero{stage}.json"
        config["deepspeed_config"]["deepspeed_config_file"] = str(file)
        (tmp_path / "zero.yaml").write_text(yaml.safe_dump(config))
        return "zero.yaml"

    return write
