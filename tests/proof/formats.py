"""The files that come from outside, each with what reads it: see `hostile`."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch
import yaml
from mlflow.exceptions import MlflowException

from orchestration.build import build_jobs
from orchestration.load import load_profile
from orchestration.plan import Plan
from orchestration.store import FILE, read
from pipeline.codec import ModelInfo, load_auxiliary, load_model, save_model
from pipeline.codec.architectures.cca.model import CCAModel
from pipeline.codec.light.codec import light_model
from pipeline.common.errors import RunError
from pipeline.common.leases import LEASE_FILE, Owner, Signs, read_lease
from pipeline.tracking.measured import measured
from pipeline.tracking.progress import spooled_progress
from pipeline.tracking.served import check_body
from pipeline.tracking.spool import Spool, State, last_steps
from recipes.comparing import compare, side
from recipes.config.load import load_recipe
from recipes.launching.ranks import processes_asked
from recipes.training import checkpoint
from recipes.training.results import read_run
from recipes.training.trainer_state import TrainerState
from shards import Stream
from shards.augment.spec import read_spec
from shards.inspecting.verify import verify
from shards.options import Options
from shards.run import shard
from shards.sources.base import Part
from shards.sources.captions import read_descriptions
from shards.sources.files import SourceFile
from tests.codec.test_hostile import CONFIG
from tests.proof.hostile import Format
from tests.shards.made import encoded, numbered, photo, write_split

ROOT = Path(__file__).resolve().parents[2]


def _split(folder: Path) -> Path:
    write_split(folder, [3, 2], numbered(5, 20, 24), checksums=True)
    return folder / "train.json"


def _use_split(path: Path) -> None:
    folder = path.parent
    for batch in Stream(folder, batch_size=2, crop=8, epochs=1):
        assert batch.images.shape == (2, 3, 8, 8)
    verify(folder)


def _table(folder: Path) -> Path:
    _split(folder)
    return folder / "train-000000.parquet"


def _tar(folder: Path) -> Path:
    _split(folder)
    return folder / "train-000001.tar"


def _use_tar(path: Path) -> None:
    for _ in Stream(path, batch_size=1, crop=8, epochs=1):
        pass


def _plan(folder: Path) -> Path:
    recipe, profile = ROOT / "recipes" / "demo.yaml", ROOT / "orchestration/profiles/slurm.yaml"
    known = load_profile(profile)
    plan = Plan(
        id="demo-261128-1200-abcd",
        recipe="recipes/demo.yaml",
        out="runs",
        workdir=str(folder),
        created=datetime(2026, 11, 28, tzinfo=UTC).isoformat(),
        profile=known.model_dump(mode="json"),
        jobs=build_jobs(load_recipe(recipe), known, "recipes/demo.yaml"),
    )
    (folder / FILE).write_text(plan.model_dump_json())
    return folder / FILE


def _profile(folder: Path) -> Path:
    return _copied(ROOT / "orchestration" / "profiles" / "slurm.yaml", folder)


def _recipe(folder: Path) -> Path:
    return _copied(ROOT / "recipes" / "demo.yaml", folder)


def _copied(file: Path, folder: Path) -> Path:
    return Path(shutil.copy(file, folder))


@cache
def _model() -> CCAModel:
    return CCAModel(CONFIG)


def _model_file(folder: Path) -> Path:
    torch.manual_seed(0)
    return save_model(_model(), folder, ModelInfo(name="tiny"))


def _use_model(path: Path) -> None:
    load_model(path)
    load_auxiliary(path)


def _checkpoint(folder: Path) -> Path:
    about = {
        "step": 3,
        "cost": 1.5,
        "memory": vars(TrainerState(step=3)),
        "decisive": {"lr": 1e-3},
        "data_digest": "0" * 64,
        "config": CONFIG.to_dict(),
    }
    made = checkpoint.write(folder, {"weights.a": torch.zeros(3)}, about)
    return made / checkpoint.ABOUT


def _use_checkpoint(path: Path) -> None:
    newest = checkpoint.read_newest(path.parents[2])
    if newest is not None:
        kept = newest[0]
        assert isinstance(TrainerState.of(kept.about), TrainerState)
        assert kept.step >= 0
        assert kept.cost is None or kept.cost >= 0 or kept.cost < 0 or kept.cost != kept.cost


def _run(folder: Path) -> Path:
    about = {"id": "base", "run_id": "0" * 32, "steps": 6, "step": 6, "done": True}
    (folder / "run.json").write_text(json.dumps(about))
    return folder / "run.json"


def _spool(folder: Path) -> Path:
    spool = Spool(folder)
    spool.save_state(State("key", "cca", "run", "sqlite:///x.db", "0" * 32))
    spool.append({"kind": "begin", "time": 1, "params": {"lr": "1"}, "tags": {}})
    for step in range(4):
        spool.append({"kind": "metrics", "values": {"train/loss": 1.0}, "step": step, "time": step})
    spool.append({"kind": "end", "status": "FINISHED", "time": 9})
    spool.close()
    return folder / "tracking" / "spool.jsonl"


def _use_spool(path: Path) -> None:
    folder = path.parents[1]
    spooled_progress(folder)
    spool = Spool(folder)
    try:
        spool.load_state()
        last_steps(spool)
    finally:
        spool.close()


def _state(folder: Path) -> Path:
    return _spool(folder).with_name("state.json")


def _results(folder: Path) -> Path:
    picture = {"name": "a.png", "bytes": 10, "bpp": 1.0, "psnr": 30.0}
    model = {"name": "m", "curve": "c", "fingerprint": "ab" * 32, "bpp": 1.0, "psnr": 30.0}
    content = {
        "format": 1,
        "pictures": [{"name": "a.png", "digest": "0"}],
        "models": [{**model, "ms_ssim": 0.9, "pictures": [picture]}],
        "bd_rate": {"c": {"jpeg": {"psnr": {"value": -3.0, "interval": [-4, -2]}}}},
    }
    (folder / "results.json").write_text(json.dumps(content))
    return folder / "results.json"


def _described(name: str, text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def _use_described(path: Path) -> None:
    data = path.read_bytes()
    found = SourceFile(path.name, Part(path.name.encode(), 0, len(data)), 0)
    read_descriptions([found], lambda _: data)


def _compared(folder: Path) -> Path:
    _run(folder)
    (folder / "run.json").write_text(json.dumps({"id": "base", "steps": 6, "step": 6}))
    shutil.copy(ROOT / "recipes" / "demo.yaml", folder / "recipe.yaml")
    _checkpoint(folder)
    return folder / "run.json"


def _use_compared(path: Path) -> None:
    one = side(str(path.parent))
    compare(one, side(str(ROOT / "recipes" / "demo.yaml"))).to_dict()


def _augment(folder: Path) -> Path:
    scale = {"RandomDownscale": {"scale": [0.6, 0.9], "min_side": 64}}
    crop = {"RandomCrop": {"size": 64, "count": 2}}
    content = {"operations": [scale, crop, {"RandomHorizontalFlip": {"p": 0.5}}], "format": "png"}
    (folder / "augment.yaml").write_text(yaml.safe_dump(content))
    return folder / "augment.yaml"


def _launch_file(folder: Path) -> Path:
    return _copied(ROOT / "recipes" / "accelerate" / "multi-gpu.yaml", folder)


def _use_launch_file(path: Path) -> None:
    processes_asked(["accelerate", "launch", "--config_file", str(path), "recipes/train.py"])


def _lease(folder: Path) -> Path:
    owner = {"host": "a", "pid": 7, "job": "1", "boot": "b", "time": 1.0}
    (folder / LEASE_FILE).write_text(json.dumps(owner))
    return folder / LEASE_FILE


def _use_lease(path: Path) -> None:
    Owner.read(read_lease(path.parent) or "")
    assert Signs.of(path.parent)


def _made_plan(folder: Path) -> Path:
    shard([str(_pictures())], folder, SHARDED, workers=1)
    (folder / "train.json").unlink()
    return next(folder.glob(".train.plan.json"))


SHARDED = Options(split="train", shard_size=4000, min_side=32)


@cache
def _pictures() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="formats-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encoded(photo(number, 40, 40)))
    return folder


def _use_made_plan(path: Path) -> None:
    """Go on with the shards that are planned here."""
    shard([str(_pictures())], path.parent, SHARDED, workers=1)


def _plan_rows(folder: Path) -> Path:
    _made_plan(folder)
    (folder / "train-000000.tar").unlink()
    return next(folder.glob(".train.plan*.parquet"))


def _caption_table(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"file_name": [f"{n}.jpg" for n in range(5)], "text": ["a dog"] * 5}
    pq.write_table(pa.table(columns), folder / "metadata.parquet")
    return folder / "metadata.parquet"


def _use_request(path: Path) -> None:
    try:
        check_body(path.read_bytes())
    except MlflowException as error:
        raise RunError(str(error)) from error


REQUEST = json.dumps({"dataframe_split": {"columns": ["data"], "data": [["aGk="]]},
                      "params": {"operation": "compress", "rate": 1.0}})  # fmt: skip
JSON_LINES = "".join(
    json.dumps({"file_name": f"{n}.jpg", "text": "a dog", "when": n}) + "\n" for n in range(5)
)
TABLE = "image_name| comment_number| comment\n" + "".join(f"{n}.jpg| 0| A dog\n" for n in range(5))

FORMATS = (
    Format("manifest", "json", _split, _use_split),
    Format("sidecar", "bytes", _table, lambda path: _use_split(path.parent / "train.json")),
    Format("tar", "bytes", _tar, _use_tar),
    Format("plan", "json", _plan, lambda path: read(path.parent)),
    Format("profile", "yaml", _profile, load_profile),
    Format("recipe", "yaml", _recipe, lambda path: load_recipe(path).runs()),
    Format("model", "bytes", _model_file, _use_model),
    Format("checkpoint", "json", _checkpoint, _use_checkpoint),
    Format("run", "json", _run, lambda path: read_run(path.parent)),
    Format("spool", "lines", _spool, _use_spool),
    Format("state", "json", _state, _use_spool),
    Format("results", "json", _results, lambda path: measured(path, "ab" * 32)),
    Format("captions", "text", _described("results.csv", TABLE), _use_described),
    Format("metadata", "lines", _described("metadata.jsonl", JSON_LINES), _use_described),
    Format("captions table", "bytes", _caption_table, _use_described),
    Format("compared run", "json", _compared, _use_compared),
    Format(
        "compared recipe",
        "yaml",
        lambda folder: _compared(folder).with_name("recipe.yaml"),
        lambda path: _use_compared(path.with_name("run.json")),
    ),
    Format("augment", "yaml", _augment, read_spec),
    Format("launch file", "yaml", _launch_file, _use_launch_file),
    Format("lease", "json", _lease, _use_lease),
    Format("shard plan", "json", _made_plan, _use_made_plan),
    Format("plan rows", "bytes", _plan_rows, _use_made_plan),
    Format("light model", "bytes", _model_file, light_model.__wrapped__),
    Format("request", "json", _described("request.json", REQUEST), _use_request),
)
