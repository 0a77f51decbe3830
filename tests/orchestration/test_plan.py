"""From a recipe and a profile to jobs, and what a dry run shows of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.build import build_jobs
from orchestration.control import make_plan
from orchestration.drawing import mermaid, rows
from orchestration.errors import OrchestrationError
from orchestration.load import profile_from
from orchestration.plan import Job, is_done
from orchestration.profile import Profile, Resources
from orchestration.script import preamble
from recipes.config.load import load_recipe
from recipes.config.schema import Recipe
from recipes.launching.command import launch_words


def profile_of(**fields: Any) -> Profile:
    return profile_from({"engine": "local", **fields}, "p.yaml")


def jobs_of(recipe: Path, **fields: Any) -> dict[str, Job]:
    jobs = build_jobs(load_recipe(recipe), profile_of(**fields), recipe.as_posix())
    return {job.name: job for job in jobs}


def test_several_corpora_are_sharded_beforehand(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("train: shards", "train: {photos: 3, scans: 1}"))
    assert jobs_of(recipe)["train-base"].inputs == ("photos", "scans")
    with pytest.raises(OrchestrationError, match="the recipe trains on 2"):
        jobs_of(recipe, pictures={"source": ["photos"]})


def test_whole_plan_in_order(recipe: Path) -> None:
    jobs = jobs_of(recipe, pictures={"source": ["photos"], "parts": 3, "options": ["--seed", "1"]})

    assert {name: job.needs for name, job in jobs.items()} == {
        "shard": (),
        "shard-finish": ("shard",),
        "train-base": ("shard-finish",),
        "train-mse-w0.3": ("train-base",),
        "train-mse-w1.8": ("train-base",),
        "evaluate-mse": ("train-mse-w0.3", "train-mse-w1.8"),
        "register-mse-w0.3": ("evaluate-mse",),
        "register-mse-w1.8": ("register-mse-w0.3",),
        "promote-mse": ("register-mse-w0.3", "register-mse-w1.8"),
    }
    shard = "pipeline shard photos --out shards --split train --seed 1"
    assert jobs["shard"].parts == 3
    assert jobs["shard"].shell(part="2") == f"{shard} --part 2/3"
    assert jobs["shard-finish"].shell() == shard
    assert (
        jobs["train-mse-w0.3"]
        .shell()
        .endswith("-m recipes.train tiny.yaml --stage mse --rate-weight 0.3 processes=1")
    )
    assert jobs["evaluate-mse"].shell() == (
        "pipeline evaluate runs/mse/w0.3 runs/mse/w1.8 --data held-out --out runs/reports/mse"
    )
    assert jobs["register-mse-w0.3"].shell() == (
        "pipeline register runs/mse/w0.3 --name tiny --metrics runs/reports/mse/results.json"
        " --alias challenger --json"
    )
    assert jobs["promote-mse"].shell() == "pipeline promote tiny --data held-out --json"
    assert jobs["train-base"].outputs == ("runs/base/model.safetensors",)
    assert jobs["train-mse-w0.3"].inputs == ("runs/base/model.safetensors",)


def test_without_source_registry_or_test_pictures_the_plan_is_shorter(recipe: Path) -> None:
    jobs = jobs_of(recipe, registry={"enabled": False})
    assert list(jobs) == ["train-base", "train-mse-w0.3", "train-mse-w1.8", "evaluate-mse"]
    assert jobs["train-base"].needs == ()

    recipe.write_text(recipe.read_text().replace(", validation: held-out", ""))
    with pytest.raises(OrchestrationError, match=r"evaluation\.data"):
        jobs_of(recipe)
    jobs = jobs_of(recipe, registry={"promote": False})
    assert jobs["register-mse-w0.3"].needs == ("train-mse-w0.3", "train-mse-w1.8")


def test_stages_with_models_of_their_own_get_names_of_their_own(recipe: Path) -> None:
    more = "  - {name: pretty, init: mse, rate_weight: [0.3], steps: 5, distortion: ms-ssim}\n"
    recipe.write_text(recipe.read_text() + more)
    jobs = jobs_of(recipe)
    assert jobs["train-pretty-w0.3"].needs == ("train-mse-w0.3",)
    assert "--name tiny-pretty" in jobs["register-pretty-w0.3"].shell()
    assert "--name tiny-mse" in jobs["register-mse-w0.3"].shell()


@settings(max_examples=50, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.3, 0.85, 1.8, 3.5, 7, 15]), min_size=1, unique=True),
    chain=st.integers(1, 4),
    parts=st.integers(1, 5),
)
def test_needs_come_before_and_names_differ(weights: list[float], chain: int, parts: int) -> None:
    stages = [
        {"name": f"s{i}", "rate_weight": weights if i else 1.0, "steps": 1}
        | ({"init": f"s{i - 1}"} if i else {})
        for i in range(chain)
    ]
    data = {"train": "shards", "validation": "held-out"}
    recipe = Recipe.model_validate({"name": "r", "out": "o", "data": data, "stages": stages})
    jobs = build_jobs(recipe, profile_of(pictures={"source": ["p"], "parts": parts}), "r.yaml")

    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for index, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:index])
    outputs = [job.outputs for job in jobs]
    assert len(set(outputs)) == len(outputs)
    assert sum(job.kind == "train" for job in jobs) == len(recipe.runs())


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({}, "-m recipes.launching.job --on_cpus --num_processes 1 --num_machines 1"),
        ({"processes": 2}, "--num_processes 2 --num_machines 1"),
        ({"gpus": 4, "cpus": 32}, "recipes.launching.job --num_processes 4 --num_machines 1"),
    ],
)
def test_launch_fits_the_resources(recipe: Path, resources: dict[str, int], words: str) -> None:
    text = jobs_of(recipe, gpus=4, resources={"train": resources})["train-base"].shell()
    ranks = resources.get("processes", resources.get("gpus", 1))
    assert words in text
    assert ("--multi_gpu" in text) == (ranks > 1)
    assert ("--on_cpus" in text) == ("gpus" not in resources)
    assert text.endswith(f"processes={ranks}")


def test_deepspeed_is_launched_on_each_node_by_its_own_launcher() -> None:
    options = ["--use_deepspeed", "--deepspeed_config_file", "zero2.json"]
    several = launch_words(Resources(nodes=2, gpus=4), options)
    assert several[:4] == ["python", "-P", "-m", "recipes.launching.job"]
    assert several[several.index("--deepspeed_multinode_launcher") + 1] == "standard"
    assert "--multi_gpu" not in several
    # On a CPU, Accelerate's variable would turn DeepSpeed off without a word.
    assert "--on_cpus" not in launch_words(Resources(processes=2), options)
    assert "--deepspeed_multinode_launcher" not in launch_words(Resources(gpus=4), options)


def test_training_is_done_when_its_run_says_so(recipe: Path, tmp_path: Path) -> None:
    job = jobs_of(recipe)["train-base"]
    (tmp_path / "runs" / "base").mkdir(parents=True)
    for text, done in (("false", False), ("true", True)):
        (tmp_path / "runs/base/run.json").write_text(f'{{"run_id": "a", "done": {text}}}')
        assert is_done(job, str(tmp_path)) == done


@settings(max_examples=60, deadline=None)
@given(
    stages=st.lists(
        st.tuples(
            st.sampled_from(["a", "a-w1", "a-w1.2", "fine_tune", "fine-tune", "fine.tune", "b_"]),
            st.sampled_from([None, [1.0], [0.3, 1.0]]),
        ),
        min_size=1,
        unique_by=lambda stage: stage[0],
    )
)
def test_job_names_are_unique_and_lead_back_to_their_runs(
    stages: list[tuple[str, list[float] | None]],
) -> None:
    described = [{"name": name, "rate_weight": rates or 1.8, "steps": 1} for name, rates in stages]
    data = {"train": "shards", "validation": "held-out"}
    content = {"name": "r", "out": "o", "data": data, "stages": described}
    recipe = Recipe.model_validate(content)
    jobs = build_jobs(recipe, profile_of(), "r.yaml")

    assert len({job.name for job in jobs}) == len(jobs)
    assert len({job.receipt for job in jobs if job.receipt}) == sum(bool(j.receipt) for j in jobs)
    trained = {job.run_folder: job.name for job in jobs if job.kind == "train"}
    assert set(trained) == {run.folder.as_posix() for run in recipe.runs()}
    for folder, name in trained.items():
        plain = "train-" + (folder or "").removeprefix("o/").replace("/", "-")
        # Only where two would have one name, a number follows.
        assert name == plain or (name.startswith(f"{plain}.") and plain in trained.values())
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", job.name) for job in jobs)


def test_receipt_is_there_only_after_success(tmp_path: Path) -> None:
    from orchestration.script import command

    common: dict[str, Any] = {"name": "r", "kind": "register", "done": "false", "resources": {}}
    for code, there in ((1, False), (0, True)):
        words = ("bash", "-c", f"echo version 3; exit {code}")
        job = Job(words=words, receipt="kept/r.json", **common)
        text = f"set -eo pipefail\n{command(job)}"
        ran = subprocess.run(["bash", "-c", text], cwd=tmp_path, check=False, capture_output=True)
        assert ran.returncode == code
        assert (tmp_path / "kept" / "r.json").exists() == there


def test_environment_wins_over_what_the_set_up_loads(
    recipe: Path, profiles: Path, tmp_path: Path
) -> None:
    for place in ("module", "own"):
        tool = tmp_path / place / "bin" / "tool"
        tool.parent.mkdir(parents=True)
        tool.write_text(f"#!/bin/sh\necho {place}\n")
        tool.chmod(0o755)
    profile = profile_of(
        environment=str(tmp_path / "own"), setup=[f"PATH={tmp_path / 'module' / 'bin'}:$PATH"]
    )
    plan = make_plan(recipe, profiles / "local.yaml").plan
    job = plan.job("train-base").model_copy(update={"done": "false"})
    text = "\n".join([*preamble(plan, job, profile), "tool"])
    ran = subprocess.run(["bash", "-c", text], check=True, capture_output=True, text=True)
    assert ran.stdout == "own\n"


def test_home_is_known_in_the_profile(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    profile = Path("home.yaml")
    profile.write_text("engine: local\nworkdir: ~/cca\nenvironment: ~/cca/.venv\n")
    (tmp_path / "me/cca/.venv/bin").mkdir(parents=True)
    made = make_plan(recipe, profile)
    assert made.plan.workdir == str(tmp_path / "me" / "cca")
    assert f"export PATH={tmp_path}/me/cca/.venv/bin:$PATH" in made.scripts["train-base.sh"]


def test_words_are_quoted_for_the_shell() -> None:
    job = Job(
        name="j",
        kind="shard",
        words=("pipeline", "shard", "my pictures; rm *", "--part", "{part}/2"),
        resources={},  # type: ignore[arg-type]
        done="false",
        parts=2,
    )
    assert job.shell(part='"$P"') == "pipeline shard 'my pictures; rm *' --part \"$P\"/2"


def test_dry_run_writes_nothing_and_shows_all(recipe: Path, profiles: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    made = make_plan(recipe, profiles / "slurm.yaml", ["stages.base.steps=7"])
    assert sorted(tmp_path.rglob("*")) == before

    assert made.plan.id.startswith("tiny-")
    assert [row["job"] for row in rows(made.plan)] == [job.name for job in made.plan.jobs]
    picture = mermaid(made.plan)
    assert picture.startswith("flowchart LR")
    assert picture.count("-->") == sum(len(job.needs) for job in made.plan.jobs)
    script = made.scripts["train-base.sh"]
    assert "stages.base.steps=7" in script
    assert f"plans/{made.plan.id}/tiny.yaml" in script
    for name, text in made.scripts.items():
        checked = subprocess.run(["bash", "-n"], input=text, text=True, check=False)
        assert checked.returncode == 0, name


def test_unknown_recipe_key_is_refused_before_anything(recipe: Path, profiles: Path) -> None:
    with pytest.raises(ValueError, match="unknown key sed"):
        make_plan(recipe, profiles / "local.yaml", ["sed=1"])


@pytest.mark.parametrize("line", ["module load none/9.9", "source /nowhere/conda.sh", "false"])
def test_script_stops_at_a_set_up_line_that_fails_and_says_which(
    recipe: Path, profiles: Path, line: str
) -> None:
    profile = profile_of(setup=["true", line, "echo 'and on it goes'"])
    plan = make_plan(recipe, profiles / "local.yaml").plan
    text = "\n".join([*preamble(plan, plan.job("train-base"), profile), "echo trained"])
    ran = subprocess.run(["bash", "-c", text], check=False, capture_output=True, text=True)
    assert ran.returncode != 0
    assert ran.stdout == ""
    _, said, after = ran.stderr.rpartition("set-up: ")
    assert said
    assert after.startswith(f"{line}\n")
