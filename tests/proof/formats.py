"""The files that come from outside, each with what reads it: see `hostile`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch

from orchestration.build import build_jobs
from orchestration.load import load_profile
from orchestration.plan import Plan
from orchestration.store import FILE, read
from pipeline.codec import ModelInfo, load_auxiliary, load_model, save_model
from pipeline.codec.architectures.cca.model import CCAModel
from pipeline.tracking.measured import measured
from pipeline.tracking.progress import spooled_progress
from pipeline.tracking.spool import Spool, State, last_steps
from recipes.config.load import load_recipe
from recipes.training import checkpoint
from recipes.training.results import read_run
from recipes.training.trainer_state import TrainerState
from shards import Stream
from shards.inspecting.verify import verify
from shards.sources.base import Part
from shards.sources.captions import read_descriptions
from shards.sources.files import SourceFile
from tests.codec.test_hostile import CONFIG
from tests.proof.hostile import Format
from tests.shards.made import numbered, write_split

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
)
