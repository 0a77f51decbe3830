"""What launches a scheduler's job: guarded against the job's shell, and ended with its script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.launching import accelerate, job
from recipes.launching.ranks import processes_asked, started_by

LEFT = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_USE_FSDP": "true",
    "PET_NPROC_PER_NODE": "4",
    "TORCHDYNAMO_DISABLE": "1",
    "RANK": "3",
    "WORLD_SIZE": "8",
    "PMI_RANK": "1",
    "PMI_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
}


def test_what_other_launchers_left_is_out_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**LEFT, "MLFLOW_EXPERIMENT": "e", "NCCL_DEBUG": "WARN"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    try:
        ignored = job.prepare(on_cpus=True)
        assert LEFT.items() <= ignored.items()
        assert not LEFT.keys() & os.environ.keys()
        assert os.environ["ACCELERATE_USE_CPU"] == "true"
        assert os.environ["NCCL_DEBUG"] == "WARN"
        job.prepare(on_cpus=False)
        assert "ACCELERATE_USE_CPU" not in os.environ
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_job_reads_a_launch_file_of_ours_and_never_the_users(root: Path) -> None:
    plain = ["--config_file", str(root / "recipes/accelerate/gpu.yaml")]
    script = ["recipes/train.py", "r.yaml", "out=--config_file"]
    assert job.options(["--on_cpus", "--num_processes", "2", *script]) == [
        *(*plain, "--num_processes", "2"),
        *script,
    ]
    for named in (["--config_file", "mine.yaml"], ["--config_file=mine.yaml"]):
        assert job.options([*named, *script]) == [*named, *script]
    assert job.options(["--config_file", "recipes/accelerate/zero1.yaml"])[1].endswith("zero1.yaml")
    launcher = ["python", "-P", "-m", "recipes.launching.job", "--num_processes", "2", *script]
    assert started_by([launcher])
    assert processes_asked(launcher) == 2


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("a: [", "is not YAML"),
        ("\0", "is not YAML"),
        pytest.param("[" * 5000, "is not YAML", id="deep"),
        ("- 1", "is no launch file"),
        ("", "is no launch file"),
        ("num_processes: many", "num_processes is 'many', and must be a number from 1 up"),
        ("num_processes: 0", "num_processes is 0"),
        ("machine_rank: -1", "machine_rank is -1"),
        ("num_machines: true", "num_machines is True"),
    ],
)
def test_a_launch_file_that_is_none_is_one_sentence(tmp_path: Path, text: str, piece: str) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=piece):
        accelerate.check_file(str(file))


def test_launch_files_of_ours_are_launch_files(root: Path) -> None:
    for file in (root / "recipes" / "accelerate").glob("*.yaml"):
        accelerate.check_file(str(file))


WRAPPER = """#!/bin/bash
printf '%s ' "$@"; echo "PMI_RANK=${PMI_RANK-}"; trap -p USR1; exit 75
"""


def test_an_accelerate_of_the_sites_own_is_what_launches(tmp_path: Path) -> None:
    own = Path(sys.executable).parent
    assert job.sites_own(str(own)) is None
    wrapper = tmp_path / "bin" / "accelerate"
    wrapper.parent.mkdir()
    wrapper.write_text(WRAPPER)
    wrapper.chmod(0o755)
    words = [sys.executable, "-P", "-m", "recipes.launching.job", "--num_processes", "1"]
    done = subprocess.run(
        [*words, "recipes/train.py", "r.yaml"],
        env={**os.environ, **LEFT, "PATH": f"{wrapper.parent}:{own}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75, done.stderr
    assert done.stdout.startswith("launch --config_file ")
    assert "--num_processes 1 recipes/train.py r.yaml PMI_RANK=\ntrap -- '' SIGUSR1" in done.stdout
    assert f"launched by {wrapper}" in done.stderr


TRAINS = """
import json, os, pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
print(json.dumps(dict(os.environ)), flush=True)
while True:
    time.sleep(0.1)
"""


@pytest.mark.slow
def test_training_ends_with_the_script_of_its_job(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINS)
    # Were it read, no process would be started.
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text("use_cpu: [broken")
    words = [sys.executable, "-P", "-m", "recipes.launching.job", "--on_cpus"]
    words += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    words += ["--dynamo_backend", "no", str(tmp_path / "train.py"), str(tmp_path / "end")]
    script = subprocess.Popen(
        ["bash", "-c", '"$@" & wait', "job", *words],
        env={**os.environ, **LEFT, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert script.stdout is not None
    there = json.loads(script.stdout.readline())
    assert there["ACCELERATE_MIXED_PRECISION"] == "no"
    assert not {"PMI_RANK", "OMPI_COMM_WORLD_RANK", "TORCHDYNAMO_DISABLE"} & there.keys()
    script.kill()
    # All that write there have ended when it ends.
    assert script.stdout.read() == ""
    script.wait()
    assert (tmp_path / "end").read_text() == "SIGUSR1"
