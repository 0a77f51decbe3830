"""Writes the results of a run, in the first process: its folder, its MLflow run, its model."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from pipeline.codec import (
    CodecError,
    Config,
    Model,
    ModelInfo,
    architectures,
    round_to_half,
    save_model,
)
from pipeline.codec.calibrating import calibrate
from pipeline.common.atomic import write_json, write_text
from pipeline.common.leases import LEASE_FILE
from pipeline.common.locks import LOCK_FILE, check_held
from pipeline.common.references import id_of
from pipeline.evaluation.metrics import Picture
from pipeline.tracking import Tracker
from pipeline.tracking.resolving import run_reference
from recipes.config import run_file
from recipes.config.schema import Run
from recipes.launching.environment import listed
from recipes.training.checkpoint import FOLDER, free_name
from recipes.training.data import Corpora, first_crops
from recipes.training.initial_model import lineage, starting_fingerprint
from recipes.training.state import part
from recipes.training.throughput import Meter, psnr
from shards import Batch

log = logging.getLogger(__name__)


class Results:
    """The folder and the MLflow run of one run."""

    def __init__(
        self,
        run: Run,
        corpora: Corpora,
        overrides: Sequence[str] = (),
        ignored: Mapping[str, str] | None = None,
    ) -> None:
        """`ignored` are variables of the environment that were taken out."""
        self.run, self.corpora, self.overrides = run, corpora, overrides
        self.ignored = dict(ignored or {})
        self.origin: Mapping[str, Any] | None = None
        self.data_digest = corpora.digest
        self._tracker: Tracker | None = None

    def open(self, origin: Mapping[str, Any] | None = None) -> None:
        """Write the resolved recipe, begin or continue the MLflow run.

        `origin` says which checkpoint of another run this one began from.
        """
        self.origin = origin
        run, recipe = self.run, self.run.recipe
        resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
        write_text(run.folder / "recipe.yaml", resolved)
        known = read_run(run.folder)
        self._tracker = Tracker.start(
            recipe.tracking.experiment,
            f"{recipe.name}/{run.id}",
            params=run.decisive() | {"recipe": recipe.name},
            tags=self._tags(),
            # The folder's own records know a run that has no id yet.
            run_id=id_of(known.get("run_id")),
            parent_run_id=self._parent_run_id(),
            folder=run.folder,
        )
        for name, place, manifest in self.corpora.named(run.data.split):
            self._tracker.dataset(name, manifest.digest, place)
            self._tracker.log_text(manifest.to_json(), f"{name}.json", "data")
        self._tracker.log_file(run.folder / "recipe.yaml")
        self._write_run(done=False, step=int(known.get("step", 0)))

    def log(self, step: int, found: Mapping[str, float], meter: Meter) -> None:
        """Track the metrics of a step."""
        metrics = {name: found[name] for name in found if name not in ("stop", "due")}
        metrics["psnr"] = psnr(found["mse"])
        speed = {f"speed/{name}": value for name, value in meter.metrics().items()}
        self.tracker.log({f"train/{name}": metrics[name] for name in metrics} | speed, step)

    def log_held_out(self, step: int, means: Mapping[str, float]) -> None:
        """Track an evaluation on the held-out pictures."""
        self.tracker.log({f"val/{name}": value for name, value in means.items()}, step)

    def show(self, name: str, picture: Picture, step: int) -> None:
        """Show a picture (H, W, 3) uint8 in MLflow."""
        self.tracker.log_image(picture, name, step)

    def finish(self, config: Config, tensors: Mapping[str, Tensor], step: int) -> None:
        """Write the model of the state `tensors`, then say that the run is done."""
        self._write_run(done=False, step=step)
        count = self.run.stage.calibrate
        crops = first_crops(self.run, count) if count else ()
        path = export(config, tensors, self.run.folder, self.info(step), crops)
        self.tracker.log_file(path, "model")
        self._write_run(done=True, step=step)

    def close(self, status: str) -> None:
        """End the MLflow run; what it could not deliver stays in the folder."""
        if self._tracker is not None:
            self._tracker.finish(status)

    def keep_failure(
        self, folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], reason: str
    ) -> None:
        """Keep the state before a step that could not be taken, and note that it could not."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), folder / "state.safetensors")
        write_json(folder / "checkpoint.json", about)
        step = int(about["step"])
        self._write_run(done=False, step=step, failed={"step": step, "reason": reason})

    def keep_hang(self, folder: Path) -> None:
        """Track the reports of a rank that hangs, and end the MLflow run."""
        for path in sorted(folder.iterdir()):
            self.tracker.log_file(path, folder.name)
        self.close("KILLED")

    @property
    def tracker(self) -> Tracker:
        """The MLflow run; `open` comes first."""
        assert self._tracker is not None
        return self._tracker

    def info(self, step: int) -> ModelInfo:
        """Return the facts on its origin that a model's file holds."""
        run = self.run
        return ModelInfo(
            name=run.id,
            recipe=run.recipe.name,
            stage=run.stage.name,
            rate_weight=run.rate_weight,
            variable_rate=run.variable_rate or None,
            distortion=run.stage.distortion,
            step=step,
            recipe_digest=run.recipe.digest,
            data_digest=self.data_digest,
            git_commit=git_commit(),
            run_id=self.tracker.reference,
            parent=run.parent.id if run.parent else run.init_model,
        )

    def _tags(self) -> dict[str, str]:
        run = self.run
        tags = {
            "recipe": run.recipe.name,
            "run": run.id,
            "stage": run.stage.name,
            "recipe_digest": run.recipe.digest,
            "data_digest": self.data_digest,
            "git_commit": git_commit(),
            "overrides": " ".join(self.overrides),
        }
        if self.ignored:
            tags["ignored_environment"] = listed(self.ignored)
        if self.origin is not None:
            tags["from"] = f"{self.origin['run']} at step {self.origin['step']}"
            tags["from_run_id"] = str(self.origin["run_id"] or "")
            tags["from_recipe_digest"] = str(self.origin["recipe_digest"] or "")
        return tags | lineage(run) | ({"parent": run.parent.id} if run.parent else {})

    def _parent_run_id(self) -> str | None:
        if self.origin is not None:
            return self.origin["run_id"] or None
        if self.run.init_model is not None:
            return lineage(self.run)["init_run_id"] or None
        return run_reference(self.run.parent.folder) if self.run.parent else None

    def _write_run(self, *, done: bool, step: int, failed: Mapping[str, Any] | None = None) -> None:
        run = self.run
        check_held(run.folder)
        content: dict[str, Any] = {
            "id": run.id,
            "run_id": self.tracker.reference,
            "stage": run.stage.name,
            "rate_weight": run.rate_weight,
            "parent": run.parent.id if run.parent else None,
            "parent_fingerprint": starting_fingerprint(run),
            "steps": run.stage.steps,
            "step": step,
            "recipe_digest": run.recipe.digest,
            "done": done,
        }
        if self.origin is not None:
            content["from"] = self.origin
        if failed is not None:
            content["failed"] = dict(failed)
        write_json(run.folder / run_file.RUN_FILE, content)


def export(
    config: Config,
    tensors: Mapping[str, Tensor],
    out: Path,
    info: ModelInfo,
    crops: Sequence[Tensor] = (),
    *,
    half: bool = False,
) -> Path:
    """Write the model of a gathered state to `out`, averaged if the state is; return the file.

    With `crops` (1, 3, S, S) it is calibrated on them. With `half` the weights are rounded to
    float16; raises `CodecError` if one is too large for that.
    """
    weights = part(tensors, "weights") | part(tensors, "ema")
    architecture = architectures.load(config.architecture)
    model = architecture.model(config)
    model.load_state_dict(part(weights, "model"))
    if half:
        round_to_half(model)
    if crops:
        _calibrate(model.eval(), crops)
    auxiliary = None
    if part(weights, "auxiliary") and architecture.auxiliary is not None:
        auxiliary = architecture.auxiliary(config)
        auxiliary.load_state_dict(part(weights, "auxiliary"))
        if half:
            round_to_half(auxiliary)
    return save_model(model, out, info, auxiliary, half=half)


def _calibrate(model: Model, crops: Sequence[Tensor]) -> None:
    """Give a model its scales, or keep it without if it can't have any."""
    try:
        calibrate(model, crops)
    except CodecError as error:
        model.set_scales({})
        log.warning("the model is kept without scales for its entropy networks: %s", error)


def keep_batch(path: Path, batch: Batch) -> None:
    """Keep a batch's pictures, with their keys in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"images": batch.images}, path, {"keys": json.dumps(batch.keys)})


def put_aside(folder: Path) -> None:
    """Move earlier files of a run, except checkpoints, to a folder before-N in its `folder`."""
    stays = (LEASE_FILE, "before")
    left = [path for path in sorted(folder.iterdir()) if path.name not in (FOLDER, LOCK_FILE)]
    left = [path for path in left if not path.name.startswith(stays)]
    if left:
        aside = free_name(folder / "before")
        aside.mkdir()
        for path in left:
            path.rename(aside / path.name)


def read_run(folder: Path) -> dict[str, Any]:
    """Return the contents of `run.json`; {} where there is none that can be read."""
    try:
        return run_file.parsed((folder / run_file.RUN_FILE).read_bytes())
    except (OSError, ValueError):
        return {}


def git_commit() -> str:
    """Return the commit of this code; "" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
