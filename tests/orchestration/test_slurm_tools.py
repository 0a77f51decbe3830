"""Slurm's tools as sites wrap them: environments, banners and forgetful schedulers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from orchestration import control
from orchestration.engines import slurm_site
from orchestration.engines.commands import output_of
from orchestration.engines.slurm_tools import environment
from orchestration.errors import EngineError, HalfSubmittedError, OrchestrationError
from orchestration.load import load_profile
from orchestration.profile import SlurmProfile
from orchestration.states import JobStatus, State

# A scheduler in three scripts. What is submitted lies in `queue`, a file for each job, with the
# columns that squeue is asked for; a test changes what they say and how they fail.
SBATCH = """#!/bin/bash
env > sbatch.env
[ ! -e before-sbatch ] || . ./before-sbatch
mkdir -p queue
number=$(( $(ls queue | wc -l) + 101 ))
for word in "$@"; do
  case "$word" in
    --job-name=*) name=${word#--job-name=};;
    --dependency=*) echo "${word##*:}" >> words;;
  esac
done
echo "$number|$name|${STATE:-PENDING}|${REASON:-Resources}|0:00|1:00:00||0|0|" > queue/$number
[ ! -e answer-sbatch ] || { . ./answer-sbatch; exit; }
echo "$number"
"""
SQUEUE = """#!/bin/bash
[ ! -e before-squeue ] || . ./before-squeue
cat queue/* 2>/dev/null | {
  case "$*" in *--Format*) cat;; *) awk -F'|' '$3 ~ /ING$/ {print $1, $3}';; esac
}
"""
SCANCEL = """#!/bin/bash
[ ! -e before-scancel ] || . ./before-scancel
for word in "$@"; do
  [ ! -e queue/$word ] || sed -i 's/|PENDING|/|CANCELLED|/; s/|RUNNING|/|CANCELLED|/' queue/$word
done
"""
SACCT = "#!/bin/bash\n[ ! -e accounting ] || cat accounting\n"


@pytest.fixture
def site(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder on a site whose scheduler is made of scripts."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, text in {
        "sbatch": SBATCH,
        "squeue": SQUEUE,
        "scancel": SCANCEL,
        "sacct": SACCT,
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr("orchestration.engines.slurm.SECONDS_BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr("orchestration.engines.slurm.WITHDRAW_PAUSES", (0.0, 0.0))
    monkeypatch.setattr("orchestration.engines.slurm_tools.PAUSES", (0.0, 0.0))
    (tmp_path / "p.yaml").write_text("engine: slurm\nregistry: {enabled: false}\n")
    return tmp_path


def planned(**changes: str) -> control.Scheduled:
    return control.make_plan(Path("tiny.yaml"), Path("p.yaml"))


def found(made: control.Scheduled) -> dict[str, JobStatus]:
    return {one.name: one for one in control.status(made.plan, made.folder)}


def set_queue(site: Path, word: str, reason: str = "None") -> None:
    """Let the queue say this of all jobs."""
    for path in (site / "queue").iterdir():
        fields = path.read_text().split("|")
        fields[2:4] = word, reason
        path.write_text("|".join(fields))


def test_tools_see_nothing_that_the_shell_tells_them() -> None:
    told = {
        "SBATCH_PARTITION": "x",
        "SQUEUE_STATES": "x",
        "SCANCEL_STATE": "x",
        "SACCT_FORMAT": "x",
        "SRUN_CPUS_PER_TASK": "x",
        "SLURM_JOB_ID": "7",
        "SLURM_TIME_FORMAT": "x",
        "SALLOC_ACCOUNT": "x",
        "SPANK_OPTION": "x",
    }
    kept = {"SLURM_CONF": "c", "SLURM_JWT": "j", "PATH": "p", "SHELL": "s", "SOME_THING": "t"}
    assert environment({**told, **kept, "SLURM_CLUSTERS": "other"}) == kept
    assert environment({**told, **kept}, "mine") == {**kept, "SLURM_CLUSTERS": "mine"}


def test_jobs_get_what_they_need_by_name_and_no_secret_is_written(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "correct-horse-battery-staple"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"https://me:{password}@host")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"AccountKey={password}")
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    made = planned()
    script = made.scripts["train-base.sh"]
    assert "export MLFLOW_TRACKING_URI=https://tracking.example.org" in script
    assert "srun --export=ALL" in script
    assert all(name in script for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_REGISTRY_URI"))
    control.schedule(made)
    written = [path.read_text() for path in made.folder.rglob("*") if path.is_file()]
    assert not any(password in text for text in written)
    seen = (site / "sbatch.env").read_text()
    assert f"MLFLOW_TRACKING_PASSWORD={password}" in seen
    assert "SBATCH_EXPORT" not in seen


BANNERS = [
    'echo "Welcome to Example"; echo "--> Allocation (TG-42) OK"',
    'echo "12 jobs of yours are waiting"; echo "sbatch: note" >&2',
    'printf "\\xff\\xfe Hinweis: 3 Stunden\\n"',
    "echo 7",
]


@pytest.mark.parametrize("banner", BANNERS)
def test_banners_around_the_answers_are_read_over(site: Path, banner: str) -> None:
    for tool in ("sbatch", "squeue", "scancel"):
        (site / f"before-{tool}").write_text(f"{banner}\n")
    made = planned()
    names = control.schedule(made)
    numbers = [found(made)[name].engine_id for name in names]
    assert numbers == [str(101 + index) for index in range(len(names))]
    assert control.cancel(made.plan, made.folder) == names
    assert {one.state for one in found(made).values()} == {State.CANCELLED}


ANSWERS = [
    'echo "$number"; echo "You have 12 h left."; echo 12',
    'echo 99; echo "$number;cluster"; printf "\\r\\n"',
    'echo "Submitted batch job $number on cluster b"',
    'printf "\\033[1;32m%s\\033[0m\\n" "$number"',
    'echo "作业 $number 已提交"',
    'echo "$number" >&2',
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_number_is_found_whatever_stands_around_it(site: Path, answer: str) -> None:
    (site / "answer-sbatch").write_text(f"{answer}\n")
    made = planned()
    names = control.schedule(made)
    # The second job waits for the number of the first.
    dependencies = (site / "words").read_text().splitlines()
    assert [int(line) for line in dependencies if line] == [101, 101, 103]
    assert [found(made)[name].engine_id for name in names] == ["101", "102", "103", "104"]


@pytest.mark.parametrize(
    ("says", "told"), [("echo Auftrag abgelehnt", "Auftrag abgelehnt"), ("true", "nothing")]
)
def test_a_job_that_is_nowhere_is_told_and_nothing_stays(site: Path, says: str, told: str) -> None:
    # The second one is lost by a wrapper that then ends as if nothing were wrong.
    (site / "before-sbatch").write_text(
        f'[ "$(ls queue | wc -l)" != 1 ] || {{ {says}; exit 0; }}\n'
    )
    with pytest.raises(EngineError, match=f"its answer has no job number: {told}$"):
        control.schedule(planned())
    (queued,) = (site / "queue").iterdir()
    assert "CANCELLED" in queued.read_text()
    assert not list((site / "plans").iterdir())


def test_retry_does_not_take_an_earlier_job_for_the_one_it_submits(site: Path) -> None:
    made = planned()
    control.schedule(made)
    set_queue(site, "FAILED")
    (site / "before-sbatch").write_text("exit 0\n")
    with pytest.raises(EngineError, match="its answer has no job number: nothing"):
        control.retry(made.plan, made.folder)
    (site / "before-sbatch").unlink()
    (site / "answer-sbatch").write_text("echo job $number\n")
    assert len(control.retry(made.plan, made.folder)) == 4
    assert [one.engine_id for one in found(made).values()] == ["105", "106", "107", "108"]


FAILS = '[ "$(ls queue 2>/dev/null | wc -l)" != {} ] || {{ echo "Socket timed out" >&2; exit 1; }}'
SECOND_FAILS = FAILS.format(1)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("when", ["before", "answer"])
def test_a_refused_job_takes_the_others_back(site: Path, when: str, number: int) -> None:
    # The scheduler fails before it takes the job, or with the answer when it has taken it.
    taken = number if when == "before" else number + 1
    (site / f"{when}-sbatch").write_text(FAILS.format(taken) + '; echo "$number"\n')
    with pytest.raises(EngineError, match="sbatch failed: Socket timed out"):
        control.schedule(planned())
    jobs = [path.read_text() for path in (site / "queue").glob("*")]
    assert len(jobs) == taken
    assert all("CANCELLED" in job for job in jobs)
    assert not list((site / "plans").iterdir())
    # And the folder of runs is free again.
    (site / f"{when}-sbatch").unlink()
    assert control.schedule(planned())


def test_a_tool_that_cannot_be_run_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sbatch").write_text("neither script nor program")
    for mode, told in ((0o755, "Exec format error"), (0o644, "Permission denied")):
        (tmp_path / "sbatch").chmod(mode)
        with pytest.raises(EngineError, match=f"sbatch can't be run: {told}"):
            output_of([str(tmp_path / "sbatch")])


def test_a_queue_that_fails_twice_is_asked_a_third_time(site: Path) -> None:
    made = planned()
    control.schedule(made)
    (site / "before-squeue").write_text('echo >> calls; [ "$(wc -l < calls)" -gt 2 ] || exit 1\n')
    assert {one.state for one in found(made).values()} == {State.QUEUED}
    (site / "before-squeue").write_text("echo busy >&2; exit 1\n")
    with pytest.raises(EngineError, match="squeue failed: busy"):
        found(made)


def test_where_taking_back_fails_the_plan_stays_for_cancel_and_retry(site: Path) -> None:
    (site / "before-sbatch").write_text(SECOND_FAILS)
    down = '[ "$(ls queue 2>/dev/null | wc -l)" = 0 ] || { echo "no controller" >&2; exit 1; }\n'
    for tool in ("squeue", "scancel"):
        (site / f"before-{tool}").write_text(down)
    made = planned()
    with pytest.raises(HalfSubmittedError, match=f"pipeline cancel {made.plan.id}"):
        control.schedule(made)
    for tool in ("sbatch", "squeue", "scancel"):
        (site / f"before-{tool}").unlink()
    with pytest.raises(OrchestrationError, match=f"plan {made.plan.id} is at work"):
        control.schedule(planned())
    again = control.retry(made.plan, made.folder)
    assert again == [job.name for job in made.plan.jobs[1:]]
    assert set(control.cancel(made.plan, made.folder)) == {job.name for job in made.plan.jobs}


def test_a_name_begins_with_the_job_and_older_names_are_found(site: Path) -> None:
    made = planned()
    names = control.schedule(made)
    before = found(made)
    for name, path in zip(names, sorted((site / "queue").iterdir()), strict=True):
        text = path.read_text()
        assert text.split("|")[1] == f"{name}:{made.plan.id}"
        path.write_text(text.replace(f"{name}:{made.plan.id}", f"{made.plan.id}:{name}"))
    assert found(made) == before
    assert control.cancel(made.plan, made.folder) == names


def test_what_ended_for_good_is_made_again_by_retry(site: Path) -> None:
    made = planned()
    names = control.schedule(made)
    for word in ("PREEMPTED", "BOOT_FAIL", "REVOKED"):
        set_queue(site, word)
        assert not any(one.state.active for one in found(made).values())
        assert control.retry(made.plan, made.folder) == names


def forget(site: Path, made: control.Scheduled, log: str, code: str | None) -> JobStatus:
    """Let queue and accounting forget the first job, which has left a log and an exit file."""
    (site / "queue/101").unlink()
    (made.folder / "logs/train-base.101.log").write_text(log)
    if code is not None:
        (made.folder / "logs/train-base.101.exit").write_text(f"{code}\n")
    return found(made)["train-base"]


@pytest.mark.parametrize(
    ("log", "code", "state", "reason"),
    [
        ("train: no space left\n", "1", State.FAILED, "exit code 1: train: no space left"),
        ("step 7 of 20\n", None, State.FAILED, "ended by force, .*: step 7 of 20"),
        ("done\n", "0", State.DONE, ""),
    ],
)
def test_a_forgotten_job_speaks_for_itself(
    site: Path, log: str, code: str | None, state: State, reason: str
) -> None:
    made = planned()
    control.schedule(made)
    one = forget(site, made, log, code)
    assert one.state == state
    assert re.fullmatch(reason, one.reason)


def test_script_leaves_its_exit_code_and_says_at_once_what_it_does(site: Path) -> None:
    made = planned()
    control.schedule(made)
    # A controller that does not answer is asked again for more than a minute; this one answers.
    for tool, text in {"srun": "exit 7", "scontrol": "echo JobState=RUNNING"}.items():
        (site / "site" / tool).write_text(f"#!/bin/bash\n{text}\n")
        (site / "site" / tool).chmod(0o755)
    job = {**os.environ, "SLURM_JOB_ID": "101", "SLURM_EXPORT_ENV": "NONE"}
    script = made.folder / "train-base.sh"
    ran = subprocess.run(["bash", script], env=job, capture_output=True, text=True, check=False)
    assert ran.returncode == 7
    assert "train-base starts on" in ran.stderr
    assert (made.folder / "logs/train-base.101.exit").read_text() == "7\n"


def test_status_says_who_cancelled_and_all_that_a_job_waits_for(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "anna")
    made = planned()
    control.schedule(made)
    set_queue(site, "PENDING", "Dependency")
    waiting = found(made)["evaluate-mse"]
    assert waiting.reason == "for train-mse-w0.3, train-mse-w1.8"
    control.cancel(made.plan, made.folder)
    for one in found(made).values():
        assert one.state == State.CANCELLED
        assert one.reason.startswith("cancelled by anna, 20")
    control.retry(made.plan, made.folder)
    assert all(one.state.active for one in found(made).values())


def in_two_folders(site: Path) -> Sequence[Path]:
    text = (site / "tiny.yaml").read_text().replace("out: runs", f"out: {site}/shared")
    folders = [site / "one", site / "two"]
    for folder in folders:
        folder.mkdir()
        (folder / "tiny.yaml").write_text(text)
        (folder / "p.yaml").write_text((site / "p.yaml").read_text())
    return folders


def in_one_folder(site: Path) -> Sequence[Path]:
    return [site, site]


@pytest.mark.parametrize("places", [in_one_folder, in_two_folders])
def test_of_two_schedules_at_once_one_is_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch, places: Callable[[Path], Sequence[Path]]
) -> None:
    folders = places(site)
    # The first holds the lock for as long as its sbatch takes.
    for folder in {*folders}:
        (folder / "before-sbatch").write_text("sleep 1\n")
        (folder / "queue").symlink_to(site / "queue") if folder != site else None
    (site / "queue").mkdir()
    words = [sys.executable, "-m", "pipeline.cli.main", "schedule", "tiny.yaml", "--on", "p.yaml"]
    at_once = [
        subprocess.Popen(
            words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for folder in folders
    ]
    said = [process.communicate(timeout=300) for process in at_once]
    assert sorted(process.returncode for process in at_once) == [0, 2]
    (refused,) = [err for _, err in said if "is at work in" in err]
    (accepted,) = [out.strip() for out, _ in said if out.strip()]
    assert accepted in refused
    assert len(list((site / "queue").iterdir())) == 4


SINFO = """#!/bin/bash
echo 'Welcome to Example'
echo 'cpu*|1-00:00:00|64|256000|(null)'
echo 'gpu|30:00|32|512000+|gpu:a100:4(S:0-1)'
"""
SCONTROL = """#!/bin/bash
echo 'AccountingStorageType   = accounting_storage/none'
echo 'KillWait                = 30 sec'
"""


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("partition: gpu\nresources: {default: {gpus: 4, minutes: 30}}", set()),
        ("partition: gpus", {"partition"}),
        (
            "partition: gpu\nresources: {default: {minutes: 30}, train: {gpus: 8}}",
            {"resources.train"},
        ),
        ("resources: {default: {minutes: 1440}, evaluate: {memory: 1T}}", {"resources.evaluate"}),
    ],
)
def test_doctor_holds_the_cluster_against_the_profile(
    site: Path, fields: str, said: set[str]
) -> None:
    for name, text in {"sinfo": SINFO, "scontrol": SCONTROL}.items():
        (site / "site" / name).write_text(text)
        (site / "site" / name).chmod(0o755)
    (site / "p.yaml").write_text(f"engine: slurm\n{fields}\n")
    profile = load_profile(site / "p.yaml")
    assert isinstance(profile, SlurmProfile)
    found = [*slurm_site.findings(profile)]
    assert {what for state, what, _ in found if state == "missing"} == said
    assert ("ok", "KillWait") in {(state, what) for state, what, _ in found}
    assert "accounting" in {what for state, what, _ in found if state == "note"}
