"""A run that began while the store was down is found by its key once its records arrive."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.references import by_key, id_of, key_of
from pipeline.tracking import Tracker, deliver, lineage, register_model, run_progress
from pipeline.tracking.history import history
from pipeline.tracking.resolving import KEY_TAG, active_run, make_run, resolved, run_reference
from pipeline.tracking.store import client

KEYS = st.uuids().map(lambda drawn: drawn.hex)
NOBODY = "http://127.0.0.1:9"


def offline(folder: Path, parent: str | None = None, **tags: str) -> str:
    """Track a run of one step while no store answers; return its reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        tracker = Tracker.start(
            "tests", folder.name, params={"lr": 1}, tags=tags, parent_run_id=parent, folder=folder
        )
        tracker.log({"loss": 1}, 1)
        assert not tracker.finish(seconds=0)
        assert tracker.run_id == ""
        return tracker.reference


def runs(view: int = 1) -> list[mlflow.entities.Run]:
    where = client()
    places = [one.experiment_id for one in where.search_experiments()]
    return list(where.search_runs(places, run_view_type=view))


@given(st.text(), KEYS)
def test_a_reference_is_an_id_or_a_key_and_never_both(text: str, key: str) -> None:
    assert (key_of(by_key(key)), id_of(by_key(key))) == (key, None)
    assert (key_of(key), id_of(key)) == (None, key)
    assert key_of(text) is None or id_of(text) is None


def test_a_folder_tells_its_run(tmp_path: Path) -> None:
    key, number = "ab" * 16, "01" * 16
    told = {"run.json": {"run_id": by_key(key)}, "tracking/state.json": {"run_id": "", "key": key}}
    assert run_reference(tmp_path) is None
    for name, content in told.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        assert run_reference(tmp_path) == by_key(key)
    (tmp_path / "run.json").write_text('{"run_id": ""}')
    assert run_reference(tmp_path) == by_key(key)
    (tmp_path / "tracking/state.json").write_text(json.dumps({"run_id": number, "key": key}))
    assert run_reference(tmp_path) == number
    (tmp_path / "tracking/state.json").write_text('{"key": [')
    assert run_reference(tmp_path) is None


def test_what_is_no_reference_means_no_run(workdir: Path) -> None:
    where = client()
    for text in ("", None, "key:", "key:' or 1", by_key("ab" * 16), by_key("g" * 32)):
        assert resolved(where, text) is None
    assert resolved(where, "a-plugin's id") == "a-plugin's id"


@pytest.mark.slow
def test_lineage_survives_a_store_that_was_down_throughout(
    workdir: Path, checkpoint: Callable[..., Path]
) -> None:
    base = offline(workdir / "base", stage="base")
    fine = offline(workdir / "fine", base, init_run_id=base, from_run_id="")
    model = checkpoint(run_id=fine)
    assert "`pipeline deliver` sends records" in str(lineage(str(model)).gap)

    assert deliver(workdir / "fine")
    assert deliver(workdir / "base")
    where = client()
    names = {run.info.run_name: run for run in runs(view=3)}
    assert set(names) == {"base", "fine"}
    assert len(runs(view=3)) == 2
    first, second = names["base"], names["fine"]
    tags = second.data.tags
    assert tags["mlflow.parentRunId"] == tags["init_run_id"] == first.info.run_id
    assert tags["from_run_id"] == ""
    assert (first.data.metrics["loss"], first.data.tags["stage"]) == (1, "base")
    assert {run.info.status for run in names.values()} == {"FINISHED"}

    version = register_model(str(model), "cca")
    assert version.run_id == version.tags["run_id"] == second.info.run_id
    assert version.tags["training"] == first.info.run_id
    found = lineage(str(model))
    assert ([step.name for step in found.steps], found.gap) == (["fine", "base"], None)
    assert resolved(where, run_reference(workdir / "base")) == first.info.run_id
    known = history(base, ["loss"], needed=True)
    assert known is not None
    assert known.curves == {"loss": [(1, 1.0)]}
    progress = run_progress(base)
    assert progress is not None
    assert progress.step == 1


def test_a_name_that_a_user_gave_stays(workdir: Path) -> None:
    base = offline(workdir / "base")
    key = str(key_of(base))
    where = client()
    made = make_run(where, where.create_experiment("tests"), key, key)
    where.update_run(made.info.run_id, name="the best")
    assert deliver(workdir / "base")
    (run,) = runs()
    assert (run.info.run_id, run.info.run_name) == (made.info.run_id, "the best")


def test_a_run_that_is_asked_for_twice_is_one(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mlflow.MlflowClient.create_run

    def repeated(self: mlflow.MlflowClient, *words: object, **more: object) -> object:
        real(self, *words, **more)  # type: ignore[arg-type]
        return real(self, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", repeated)
    tracker = Tracker.start("tests", "one", params={}, tags={}, folder=workdir / "run")
    assert tracker.finish()
    (run,) = runs()
    assert (run.info.run_id, run.info.status) == (tracker.run_id, "FINISHED")
    assert resolved(client(), by_key(run.data.tags[KEY_TAG])) == tracker.run_id


def test_of_two_that_were_made_at_once_everybody_takes_one(workdir: Path) -> None:
    where, key = client(), "cd" * 16
    place = where.create_experiment("tests")
    earlier = where.create_run(place, start_time=1, tags={KEY_TAG: key}, run_name=key)
    made = make_run(where, place, key, "mine")
    found = active_run(where, key)
    assert found is not None
    assert made.info.run_id == found.info.run_id == earlier.info.run_id
    assert len(runs()) == 1
    # One that has records goes before an earlier one that never got any.
    later = where.create_run(place, tags={KEY_TAG: key, "stage": "base"})
    assert resolved(where, by_key(key)) == later.info.run_id


def test_a_deleted_run_is_known_by_its_key_if_it_has_records(workdir: Path) -> None:
    where, key = client(), "ef" * 16
    made = make_run(where, where.create_experiment("tests"), key, key)
    where.delete_run(made.info.run_id)
    assert resolved(where, by_key(key)) is None
    where.restore_run(made.info.run_id)
    where.log_param(made.info.run_id, "lr", 1)
    where.delete_run(made.info.run_id)
    assert resolved(where, by_key(key)) == made.info.run_id
    assert active_run(where, key) is None


def test_a_model_whose_run_is_not_known_is_registered_without_one(
    workdir: Path, checkpoint: Callable[..., Path]
) -> None:
    where, key = client(), "ab" * 16
    # An older version wrote nothing where there was no id.
    for said in ("", by_key(key)):
        version = register_model(str(checkpoint(run_id=said)), "cca")
        assert (version.run_id, "run_id" in version.tags) == (None, False)
    assert "it names no run" in str(lineage(str(checkpoint(run_id=""))).gap)
    # Its records have arrived meanwhile.
    made = make_run(where, where.create_experiment("tests"), key, "late")
    where.log_param(made.info.run_id, "lr", 1)
    version = register_model(str(checkpoint(run_id=by_key(key))), "cca")
    assert (version.version, version.tags["run_id"]) == (1, made.info.run_id)
