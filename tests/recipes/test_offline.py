"""Stages that were trained while the tracking server was down keep their lineage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.codec import ModelInfo, load_model, save_model
from pipeline.common.locks import folder_lock
from pipeline.common.references import key_of
from pipeline.tracking import deliver
from pipeline.tracking.store import client
from recipes.config.load import load_recipe
from recipes.config.schema import Run
from recipes.training.data import Corpora
from recipes.training.module import build
from recipes.training.results import Results, read_run

STAGE = {"rate_weight": 0.3, "steps": 6, "batch": 4, "crop": 64, "lr": 1e-3}
STAGES = [{"name": "base", **STAGE}, {"name": "fine", "init": "base", **STAGE}]


def track(run: Run) -> ModelInfo:
    """Do all of a training that concerns tracking; return what its model says of its origin."""
    with folder_lock(run.folder):
        results = Results(run, Corpora.of(run.data))
        results.open()
        results.tracker.finish(seconds=0)
        save_model(build(run).model, run.folder, results.info(6))
        results.close("FINISHED")
    return load_model(run.folder).info


def offline(runs: Sequence[Run]) -> list[ModelInfo]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        return [track(run) for run in runs]


@pytest.mark.slow
def test_lineage_survives_a_server_that_is_down_throughout(write_recipe, store: str) -> None:
    recipe = write_recipe(stages=STAGES)
    base, fine = load_recipe(recipe, ["tracking.experiment=offline"]).runs()
    init = ["tracking.experiment=offline", f"stages.0.init={fine.folder}", "out=other"]
    (other, _) = load_recipe(recipe, init).runs()
    told = offline([base, fine, other])
    keys = [key_of(info.run_id) for info in told]
    assert None not in keys
    assert len(set(keys)) == 3
    assert key_of(read_run(base.folder)["run_id"]) == keys[0]

    # The last one's records arrive first; the first one goes on, as the run that it is.
    assert all(deliver(run.folder) for run in (other, fine))
    assert deliver(base.folder)
    assert not key_of(track(base).run_id)
    where = client(store)
    experiment = where.get_experiment_by_name("offline")
    assert experiment is not None
    found = where.search_runs([experiment.experiment_id])
    named = {Path(run.info.run_name).name: run for run in found}
    ids = {run.data.tags["cca.key"]: run.info.run_id for run in found}
    assert len(found) == len(ids) == 3
    assert read_run(base.folder)["run_id"] == ids[str(keys[0])]
    parents = [run.data.tags.get("mlflow.parentRunId") for run in found]
    assert sorted(filter(None, parents)) == sorted(ids[str(key)] for key in keys[:2])
    assert named["fine"].data.tags["mlflow.parentRunId"] == ids[str(keys[0])]
    (last,) = [run for run in found if run.data.tags["cca.key"] == keys[2]]
    assert last.data.tags["init_run_id"] == ids[str(keys[1])]
    assert json.loads((fine.folder / "run.json").read_text())["run_id"] == told[1].run_id
