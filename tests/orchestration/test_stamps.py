"""Work counts as done for as long as what it was made from is the same, and no longer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestration.control import make_plan
from orchestration.plan import is_done

# Notes each call, and writes what `pipeline evaluate` and `pipeline shard` write.
PIPELINE = """#!/bin/bash
echo "$*" >> calls
case "$1" in
  evaluate) mkdir -p runs/reports/mse; echo "{}" > runs/reports/mse/results.json;;
  shard) mkdir -p shards; echo "{}" > shards/train.json;;
  *) echo "{}";;
esac
"""
PROFILE = (
    "engine: local\nenvironment: env\nregistry: {promote: false}\npictures: {source: [photos]}\n"
)


@pytest.fixture
def place(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, trained models and a stand-in for the commands of jobs."""
    for name in ("held-out", "photos/cats", "env/bin"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("held-out/a.png", "held-out/b.png", "photos/cats/1.jpg"):
        (tmp_path / name).write_text(name)
    for rate in ("w0.3", "w1.8"):
        (tmp_path / "runs" / "mse" / rate).mkdir(parents=True)
        (tmp_path / "runs" / "mse" / rate / "model.safetensors").write_text(rate)
    (tmp_path / "env/bin/pipeline").write_text(PIPELINE)
    (tmp_path / "env/bin/pipeline").chmod(0o755)
    (tmp_path / "p.yaml").write_text(PROFILE)
    monkeypatch.setenv("PATH", f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def work(place: Path, name: str) -> bool:
    """Run the script of the job `name` as the plan has it now; return whether it did anything."""
    made = make_plan(Path("tiny.yaml"), Path("p.yaml"))
    before = is_done(made.plan.job(name), str(place))
    text = made.scripts[f"{name}.sh"]
    ran = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    worked = "there already" not in ran.stdout
    # What is looked at from outside says the same as the job itself.
    assert before != worked
    assert is_done(made.plan.job(name), str(place))
    return worked


def touch_everything(place: Path) -> None:
    for path in place.rglob("*"):
        os.utime(path, (1, 1))


def copy_everything(place: Path) -> None:
    shutil.copytree(place / "held-out", place / "copy")
    shutil.rmtree(place / "held-out")
    (place / "copy").rename(place / "held-out")


@pytest.mark.parametrize("change", [touch_everything, copy_everything])
def test_times_alone_make_nothing_old(place: Path, change: Callable[[Path], None]) -> None:
    assert work(place, "evaluate-mse")
    assert not work(place, "evaluate-mse")
    change(place)
    assert not work(place, "evaluate-mse")


def other_content_of_the_same_size_and_time(place: Path) -> None:
    path = place / "runs/mse/w0.3/model.safetensors"
    about = path.stat()
    path.unlink()
    path.write_text("w9.9")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns - 1))


def another_picture(place: Path) -> None:
    (place / "held-out/c.png").write_text("c")


def one_picture_less(place: Path) -> None:
    (place / "held-out/b.png").unlink()


def a_picture_replaced_by_an_older_one(place: Path) -> None:
    (place / "held-out/b.png").write_text("another")
    os.utime(place / "held-out/b.png", (1, 1))


def other_data(place: Path) -> None:
    (place / "p.yaml").write_text(PROFILE + "evaluation: {data: photos}\n")


def other_options(place: Path) -> None:
    (place / "p.yaml").write_text(PROFILE + "evaluation: {options: [--peers, jpeg]}\n")


def lost_results(place: Path) -> None:
    (place / "runs/reports/mse/results.json").unlink()


def torn_stamp(place: Path) -> None:
    (place / "runs/stamps/evaluate-mse.json").write_text("{")


@pytest.mark.parametrize(
    "change",
    [
        other_content_of_the_same_size_and_time,
        another_picture,
        one_picture_less,
        a_picture_replaced_by_an_older_one,
        other_data,
        other_options,
        lost_results,
        torn_stamp,
    ],
)
def test_evaluation_is_made_again_when_what_goes_in_has_changed(
    place: Path, change: Callable[[Path], None]
) -> None:
    assert work(place, "evaluate-mse")
    change(place)
    assert work(place, "evaluate-mse")
    assert not work(place, "evaluate-mse")


def test_registration_follows_the_report_and_shards_follow_their_source(place: Path) -> None:
    for name in ("shard", "evaluate-mse", "register-mse-w0.3"):
        assert work(place, name)
        assert not work(place, name)
    (place / "runs/reports/mse/results.json").write_text('{"other": 1}')
    assert work(place, "register-mse-w0.3")

    (place / "photos/cats/2.jpg").write_text("another")
    assert work(place, "shard")
    (place / "more").mkdir()
    (place / "p.yaml").write_text(PROFILE.replace("[photos]", "[photos, more]"))
    assert work(place, "shard")


def test_work_that_fails_leaves_no_stamp(place: Path) -> None:
    (place / "env/bin/pipeline").write_text("#!/bin/bash\nexit 3\n")
    made = make_plan(Path("tiny.yaml"), Path("p.yaml"))
    ran = subprocess.run(
        ["bash", "-c", made.scripts["evaluate-mse.sh"]], capture_output=True, check=False
    )
    assert ran.returncode == 3
    assert not (place / "runs/stamps/evaluate-mse.json").exists()
