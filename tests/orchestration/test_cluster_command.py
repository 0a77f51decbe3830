"""`pipeline schedule`, `status`, `logs`, `cancel`, `retry` as a person types them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration import store
from orchestration.profile import LocalProfile
from pipeline.cli.cluster import status_lines
from tests.cluster.tools import job, made_plan
from tests.docs.commands import commands
from tests.typed import typed

pytestmark = pytest.mark.slow  # processes, servers and codecs of their own

ROWS = [
    {
        "job": f"train-a-stage-with-quite-a-long-name-w{rate}",
        "state": "running",
        "progress": "120000 of 500000",
        "left": "7:02:11 (limit 23:10:00)",
        "elapsed": "1-03:22:10",
        "nodes": "node[0001-0016]",
        "id": "1234567",
        "reason": reason,
    }
    for rate, reason in [(0.3, ""), (15, "exit code 1: RuntimeError: " + "many words " * 20)]
]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_status_fits_the_screen_and_cuts_no_name(width: int) -> None:
    lines = list(status_lines(ROWS, width))
    named = [line.split()[0] for line in lines if line.startswith("train-")]
    assert named == [row["job"] for row in ROWS]
    assert " ".join(" ".join(lines).split()).count("many words") == 20
    assert max(map(len, lines)) <= width
    assert ("1234567" in lines[1]) == (width >= 200)


def test_status_of_short_names_is_a_line_for_each_job_at_80_columns() -> None:
    row = {**ROWS[0], "job": "train-mse-w0.3", "left": "2:11", "reason": "Resources"}
    header, line = status_lines([row], 80)
    assert "reason" in header
    assert line.endswith("Resources")
    assert len(line) <= 80


@given(
    stages=st.lists(st.from_regex(r"[a-z]{1,9}(-[a-z]{1,9}){0,4}", fullmatch=True), max_size=4),
    width=st.integers(80, 200),
)
@settings(max_examples=30, deadline=None)
def test_names_in_reasons_are_never_folded(stages: list[str], width: int) -> None:
    names = [f"train-{stage}" for stage in (*stages, "mse-of-the-last-stage")]
    rows = [{**ROWS[0], "job": name, "reason": f"for {', '.join(names)}"} for name in names]
    words = [word.strip(",") for line in status_lines(rows, width) for word in line.split()]
    assert all(words.count(name) >= 1 + len(names) for name in names)


LOCAL = "engine: local\nresources: {default: {cpus: 1}}\nregistry: {promote: false}\n"


@pytest.fixture
def local(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The profile of this machine, beside the recipe; its jobs find `pipeline` on the PATH."""
    monkeypatch.setenv("PATH", str(Path(sys.prefix) / "bin"), prepend=os.pathsep)
    Path("local.yaml").write_text(LOCAL)
    return Path("local.yaml")


def test_dry_run_prints_table_picture_and_scripts(recipe: Path, profiles: Path) -> None:
    done = typed("schedule", str(recipe), "--on", str(profiles / "slurm.yaml"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"train-mse-w0.3 +│ train-base", done.stdout)
    assert "```mermaid\nflowchart LR" in done.stdout
    assert "===== train-base.sh =====\n#!/bin/bash" in done.stdout
    assert not Path("plans").exists()


def test_dry_run_as_json(recipe: Path, profiles: Path) -> None:
    profile = str(profiles / "kubernetes.yaml")
    done = typed("schedule", str(recipe), "--on", profile, "--dry-run", "--json")
    content = json.loads(done.stdout)
    assert [row["job"] for row in content["jobs"]][:2] == ["shard x 8", "shard-finish"]
    assert json.loads(content["scripts"]["jobset-0.json"])["kind"] == "JobSet"


def test_finished_work_needs_no_job(recipe: Path, local: Path) -> None:
    local.write_text(LOCAL + "evaluation: {}\n")
    recipe.write_text(recipe.read_text().replace(", validation: held-out", ""))
    local.write_text(LOCAL.replace("promote", "enabled"))
    for run_folder in ("base", "mse/w0.3", "mse/w1.8"):
        folder = Path("runs") / run_folder
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"run_id": "", "done": true}')

    done = typed("schedule", str(recipe), "--on", str(local), "--wait", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["jobs"] == []
    jobs = json.loads(typed("status", plan["plan"], "--json").stdout)["jobs"]
    assert {job["job"]: job["state"] for job in jobs} == {
        "train-base": "done",
        "train-mse-w0.3": "done",
        "train-mse-w1.8": "done",
    }
    assert plan["plan"] in typed("status").stdout
    assert "nothing to retry" in typed("retry", plan["plan"]).stdout
    assert "nothing to cancel" in typed("cancel", plan["plan"]).stdout


@pytest.mark.slow
def test_failing_plan_says_why_in_one_sentence(recipe: Path, local: Path) -> None:
    # Without a checkout here the installed module trains.
    done = typed("schedule", str(recipe), "--on", str(local), "--wait")
    assert done.returncode == 1
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("pipeline: ")]
    assert re.search(r"plan tiny-\S+ did not succeed \(train-base: exit code \d+: train: ", last)
    (folder,) = Path("plans").iterdir()
    log = typed("logs", folder.name, "train-base")
    assert log.returncode == 0
    assert "train: " in log.stdout
    status = typed("status", folder.name)
    assert re.search(r"train-mse-w0.3 +cancelled .*train-base failed", status.stdout)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["schedule", "none.yaml", "--on", "local.yaml"], "there is no such recipe"),
        (["schedule", "tiny.yaml", "--on", "none.yaml"], "there is no such profile"),
        (["schedule", "tiny.yaml", "--on", "wrong.yaml"], "unknown key gpuz"),
        (["schedule", "tiny.yaml", "--on", "local.yaml", "sed=1"], "unknown key sed"),
        (["status", "nope"], "there is no plan nope"),
        (["logs", "nope", "job"], "there is no plan nope"),
        (["cancel", "nope"], "there is no plan nope"),
        (["retry", "nope"], "there is no plan nope"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    recipe: Path, local: Path, words: list[str], sentence: str
) -> None:
    Path("wrong.yaml").write_text("engine: local\ngpuz: 3\n")
    done = typed(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("pipeline: ")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("plans").exists()


def test_commands_of_the_page_exist(recipe: Path, root: Path, tmp_path: Path) -> None:
    """What docs/cluster.md prints is printed; of the rest, the help must know every option."""
    for folder in ("recipes", "orchestration"):
        (tmp_path / folder).symlink_to(root / folder)
    shown = [one.words for one in commands(root / "docs" / "cluster.md")]
    ours = [words[1:] for words in shown if words[0] == "pipeline"]
    assert {words[0] for words in ours} >= {"schedule", "status", "logs", "cancel", "retry"}
    known = {command: typed(command, "--help").stdout for command in {words[0] for words in ours}}
    for words in ours:
        if "--dry-run" in words or ">" in words:
            command, _, file = " ".join(words).partition(" > ")
            done = typed(*command.split())
            assert done.returncode == 0, done.stderr
            Path(file or "printed").write_text(done.stdout)
            continue
        for option in (word for word in words if word.startswith("--")):
            assert option in known[words[0]], words


STATUS = """
import sys
from pipeline.cli.main import main
try:
    main(["status", sys.argv[1]])
except SystemExit as stopped:
    assert not stopped.code
heavy = {"torch", "mlflow", "accelerate", "pandas", "numpy", "requests", "ray"}
print("loaded:", *sorted(heavy & set(sys.modules)))
"""


def test_status_of_twenty_jobs_loads_nothing_heavy(tmp_path: Path) -> None:
    """That is what makes it quick: a second, of which half is for reading schemas."""
    jobs = [job(f"j{n}", "true", [f"j{n - 1}"] if n else []) for n in range(20)]
    made = made_plan(tmp_path, LocalProfile(engine="local"), jobs)
    made.folder.mkdir(parents=True)
    store.save(made.plan, made.folder)
    words = [sys.executable, "-P", "-c", STATUS, made.plan.id]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("j")]) == 21  # with the header, "job"
    assert lines[-1] == "loaded:"
