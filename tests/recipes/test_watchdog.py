"""A rank that hangs: the others say which one and where, and end with the code of a new try."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.store import client
from recipes.launching.signals import AGAIN
from recipes.launching.watchdog import OTHERS, Watchdog, verdict
from recipes.training.results import read_run
from tests.patience import patience, wait_for

NAMES = ["rank 0 (process 11 on a)", "rank 1 (process 12 on b)", "rank 2 (process 13 on b)"]
TWO = ("--multi_gpu", "--num_processes", "2")


@given(st.dictionaries(st.integers(0, 2), st.sampled_from([OTHERS, "computes", "evaluates"])))
def test_whoever_was_not_waiting_is_named_and_nobody_else(answers: dict[int, str]) -> None:
    sentence = verdict(answers, NAMES, 7, 600.0)
    assert sentence.startswith("no progress for 600 s at step 7: ")
    hangs = [name for rank, name in enumerate(NAMES) if answers.get(rank) != OTHERS]
    assert [name for name in NAMES if name in sentence] == hangs


class Rank:
    """A watched rank of three, whose end is noted instead of made."""

    def __init__(self, folder: Path, rank: int, seconds: float) -> None:
        self.said: list[str] = []
        self.dog = Watchdog(folder, NAMES, rank, seconds, self.end)

    def end(self, folder: Path, sentence: str) -> None:
        self.said.append(sentence)


def answer(folder: Path, rank: int, doing: str, name: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"rank-{rank:04d}.txt").write_text(f"{doing}\n{name}\n\n...")


@pytest.mark.parametrize(
    ("rank", "doing", "said"),
    [
        (0, OTHERS, "at step 12: rank 2 (process 13 on b) does not answer, rank 1 (process 12 on"),
        (2, "computes", ""),
    ],
)
def test_the_first_rank_that_answers_names_the_ones_that_hang(
    tmp_path: Path, rank: int, doing: str, said: str
) -> None:
    folder = tmp_path / "hang-step-00000012"
    answer(folder, 0, OTHERS, NAMES[0])
    answer(folder, 1, "waits for its next batch", NAMES[1])
    answer(folder, 2, OTHERS, "rank 2 (process 99 on b)")  # of an earlier launch
    watched = Rank(tmp_path, rank, 0.2)
    watched.dog.mark(doing, 12)
    with watched.dog:
        wait_for(lambda: bool(watched.said), "it gives up")
    assert said in watched.said[0]
    assert bool(said) == bool(watched.said[0])


@pytest.mark.slow
def test_a_rank_that_is_stopped_ends_the_launch_with_its_name(
    write_recipe, launch, store: str
) -> None:
    path = write_recipe()
    arguments = [path, "processes=2", "launch.patience=4", "stages.0.steps=100000"]
    process = launch(arguments, *TWO, ACCELERATE_USE_CPU="true")
    folder = path.parent / "runs" / "base"
    try:
        wait_for(lambda: any((folder / "checkpoints").glob("step-*")), "a checkpoint")
        ranks = sorted(psutil.Process(process.pid).children(), key=lambda child: child.pid)
        stopped = ranks[1].pid
        os.kill(stopped, signal.SIGSTOP)
        output, _ = process.communicate(timeout=patience(200))
    finally:
        process.kill()
    assert f"(process {stopped} on " in output
    assert "does not answer; all stacks are in" in output
    assert f"exitcode  : {AGAIN}" in output
    reports = list(folder.glob("hang-step-*/rank-*.txt"))
    assert [report.name for report in reports] == ["rank-0000.txt"]
    assert OTHERS in reports[0].read_text()
    assert "loop.py" in reports[0].read_text()
    run = client(store).get_run(read_run(folder)["run_id"])
    assert run.info.status == "KILLED"
    kept = client(store).list_artifacts(run.info.run_id, reports[0].parent.name)
    assert [Path(one.path).name for one in kept] == ["rank-0000.txt"]
