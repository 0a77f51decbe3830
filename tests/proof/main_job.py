"""The main job on tiny things, and all that it leaves behind, as digests by name.

A stage is the words of a command. `snapshot` looks at the files, the store, the tracking server and
the registry, and leaves out what no two runs share: their own names, times of day and durations.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tests.recipes.conftest import MICRO

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "recipes" / "demo" / "pictures"
SOURCE, HELD, RECIPE = "pictures", "held-out", "recipe.yaml"
# Where the job writes; these alone are compared and, before the next round, removed.
RUNS, REPORT, FILES = "runs", "report", "files"
# What names a run or a moment. Their places are compared, their values can't be.
OF_THIS_RUN = {
    *("run_id", "parent", "training", "git_commit", "created", "time", "when", "sha256"),
    *("mlflow.parentRunId", "mlflow.user", "mlflow.source.name", "source", "measured_at"),
    *("init_run_id", "model_id", "spool", "mlflow.log-model.history"),
}
# Tags that say what a shell or a checkout was like.
OF_THE_SHELL = re.compile(r"git\.|ignored_environment$")
DURATION = re.compile(r"(^|[/_.])(seconds|time|speed|memory|ms|throughput)|seconds", re.IGNORECASE)
ID = re.compile(r"\b(m-)?[0-9a-f]{32}\b|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\+\d{13}\b")
# What a delivered run keeps in its folder.
KEPT_BY_TRACKING = ("spool.jsonl", "state.json", ".lock")
# The experiment and the model of a round, renamed after it.
NAME = "proof"


@dataclass(frozen=True)
class Stage:
    """A command of the main job.

    It runs in a forked process, which has no start-up; `whole`, in some rounds, is the command as a
    user types it, with all that it starts. `most`: how often one round disturbs it at most.
    """

    name: str
    words: tuple[str, ...]
    most: int
    whole: tuple[str, ...] = ()


def stages(store: str, model: str = f"{RUNS}/fine") -> list[Stage]:
    """Return the stages, with shards at `store`; pictures are compressed by `model`."""
    shard = ("--out", store, "--shard-size", "150KB", "--workers", "2", "--min-side", "32")
    train = (RECIPE, f"data.train={store}", f"tracking.experiment={NAME}")
    metrics = ("--metrics", f"{REPORT}/results.json", "--alias", "champion")
    return [
        Stage("shard", ("shard", SOURCE, *shard), 12),
        Stage("train", ("recipes/train.py", *train, "--stage", "base"), 14),
        Stage("fine-tune", ("recipes/train.py", *train), 10, whole=("train", *train)),
        Stage("deliver", ("deliver", RUNS), 2),
        Stage("evaluate", ("evaluate", f"{RUNS}/fine", "--data", HELD, "--out", REPORT,
                           "--peers", "jpeg", "--workers", "1"), 8),
        Stage("register", ("register", f"{RUNS}/fine", "--name", NAME, *metrics), 8),
        Stage("compress", ("compress", SOURCE, "--out-dir", FILES, "--model", model,
                           "--workers", "2"), 8),
    ]  # fmt: skip


def prepare(folder: Path) -> None:
    """Write the pictures and the recipe into the empty `folder`."""
    (folder / SOURCE).mkdir()
    for number, path in enumerate(sorted((PICTURES / "train").glob("*.jpg"))[:24]):
        with Image.open(path) as picture:
            part = picture.convert("RGB").crop((0, 0, 96 + 8 * (number % 4), 80))
            part.save(folder / SOURCE / f"{number:03d}.jpg", quality=90)
    (folder / HELD).mkdir()
    for number, path in enumerate(sorted((PICTURES / "kodak").glob("*.webp"))[:2]):
        with Image.open(path) as picture:
            picture.crop((100, 100, 292, 292)).save(folder / HELD / f"{number}.png")
    stage = {"rate_weight": 0.5, "batch": 4, "crop": 64, "lr": 1e-3}
    recipe = {
        "name": "trial",
        "out": RUNS,
        "model": MICRO,
        "data": {
            "validation": HELD,
            "workers": 1,
            "cache": {"folder": "cache", "gigabytes": 0.001},
        },
        "stages": [
            {"name": "base", "steps": 12, **stage},
            {"name": "fine", "init": "base", "steps": 6, **stage},
        ],
        "ema": 0.9,
        "evaluate_every": 6,
        "checkpoint": {"every_steps": 2, "keep": 3},
        "tracking": {"every_steps": 1, "pictures": 1},
    }
    (folder / RECIPE).write_text(yaml.safe_dump(recipe))


def snapshot(folder: Path, store: str) -> dict[str, str]:
    """Return what the job made, by names that tell what it is: text, or a digest of bytes."""
    found = dict(files(folder))
    found |= {f"shards/{key}": _digest(data) for key, data in _objects(folder, store)}
    found |= dict(_tracked())
    return found


def files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the files that the job made in `folder`, each with its text or a digest."""
    for place in (RUNS, REPORT, FILES):
        for path in sorted((folder / place).rglob("*")):
            known = str(path.relative_to(folder))
            seen = "/tracking/" not in known and path.name[0] != "."
            if path.is_file() and seen and not _of_an_earlier_step(path):
                yield known, _without_this_run(path)
    for path in sorted((folder / RUNS).rglob("*")):
        waits = "tracking" in path.parts and path.name not in KEPT_BY_TRACKING
        if waits and path.is_file():
            yield str(path.relative_to(folder)), "waits to be delivered"


def _of_an_earlier_step(path: Path) -> bool:
    """Whether a file is of a checkpoint with a later one: a run that was asked to stop keeps one
    more, of the step that it was at, and the oldest goes."""
    place = path.parent
    return place.parent.name == "checkpoints" and place != max(place.parent.iterdir())


def _without_this_run(path: Path) -> str:
    if path.suffix == ".json":
        return _text(json.loads(path.read_bytes()))
    if path.suffix == ".safetensors":
        return _tensors(path)
    if path.suffix in (".html", ".svg", ".csv"):
        return "present"  # pages with times in them: their numbers are in results.json
    if path.suffix in (".yaml", ".txt"):
        return _text(path.read_text())
    return _digest(path.read_bytes())


def _text(content: Any) -> str:
    return json.dumps(_cleaned(content), sort_keys=True)


def _tensors(path: Path) -> str:
    """Return the values of a safetensors file and what it says of itself, but for this run."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = header.pop("__metadata__", {})
    said = {key: _parsed(value) for key, value in about.items()}
    ordered = sorted((name, entry["dtype"], entry["shape"]) for name, entry in header.items())
    values = hashlib.sha256()
    for name, _, _ in ordered:
        start, end = header[name]["data_offsets"]
        values.update(data[8 + length + start : 8 + length + end])
    return _text([values.hexdigest(), said, ordered])


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _cleaned(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            key: "of this run" if key in OF_THIS_RUN or DURATION.search(key) else _cleaned(value)
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [_cleaned(value) for value in content]
    return ID.sub("ID", content) if isinstance(content, str) else content


def _objects(folder: Path, store: str) -> Iterator[tuple[str, bytes]]:
    if "://" not in store:
        for path in sorted((folder / store).iterdir()):
            yield path.name, path.read_bytes()
        return
    for key, read in objects(store):
        yield key.rsplit("/", 1)[-1], read()


def s3() -> Any:
    """Return a client of the object store."""
    boto3 = importlib.import_module("boto3")  # comes with no types
    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def objects(store: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys of the S3 URL `store`, each with what reads its bytes."""
    bucket, _, prefix = store.removeprefix("s3://").partition("/")
    for entry in s3().list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", []):
        key = entry["Key"]
        yield key, lambda key=key: s3().get_object(Bucket=bucket, Key=key)["Body"].read()


def _tracking() -> Any:
    """Return a client of the tracking store; None where nothing has been tracked."""
    place = os.environ["MLFLOW_TRACKING_URI"]
    if place.startswith("sqlite:") and not Path(place.removeprefix("sqlite:///")).exists():
        return None
    from mlflow import MlflowClient

    return MlflowClient(place)


def _tracked() -> Iterator[tuple[str, str]]:
    """Yield what the tracking server has of the experiment and of the model."""
    where = _tracking()
    if where is None:
        return
    experiment = where.get_experiment_by_name(NAME)
    runs = where.search_runs([experiment.experiment_id]) if experiment else []
    seen: Counter[str] = Counter()
    for run in runs:
        title = str(run.info.run_name)
        seen[title] += 1
        label = f"mlflow/{title}" + (f" again ({seen[title]})" if seen[title] > 1 else "")
        tags = {key: value for key, value in run.data.tags.items() if not OF_THE_SHELL.match(key)}
        yield label, _text([run.info.status, run.data.params, tags])
        for metric in sorted(run.data.metrics):
            values = where.get_metric_history(run.info.run_id, metric)
            pairs = sorted((one.step, one.value) for one in values)
            measured = DURATION.search(metric) or metric.startswith("system/")
            yield f"{label}/{metric}", "measured" if measured else json.dumps(pairs)
        paths = Counter(_artifacts(where, run.info.run_id))
        yield from ((f"{label}/artifacts/{path}", str(count)) for path, count in paths.items())
    for version in where.search_model_versions(f"name = '{NAME}'"):
        yield f"version {version.version}", _text(dict(version.tags))
    if where.search_registered_models(f"name = '{NAME}'"):
        yield "aliases", _text(dict(where.get_registered_model(NAME).aliases))


def rename(number: int) -> None:
    """Put the experiment and the model of a round out of the way of the next."""
    where = _tracking()
    if where is None:
        return
    if experiment := where.get_experiment_by_name(NAME):
        where.rename_experiment(experiment.experiment_id, f"{NAME}-{number}")
    if where.search_registered_models(f"name = '{NAME}'"):
        where.rename_registered_model(NAME, f"{NAME}-{number}")


def _artifacts(where: Any, run_id: str, path: str = "") -> Iterator[str]:
    """Yield the names of a run's artifacts, without the times and ids in them."""
    for found in where.list_artifacts(run_id, path):
        if found.path == "surroundings":  # one of each launch
            continue
        if found.is_dir:
            yield from _artifacts(where, run_id, found.path)
        else:
            yield ID.sub("+ID", found.path)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
