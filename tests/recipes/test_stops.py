"""Stops that are heard while something is waited for, and owners whose processes end with them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from recipes.launching import owner
from recipes.launching.owner import AGAIN
from recipes.launching.processes import report_failure
from recipes.launching.signals import StopNow, StopRequest
from recipes.train import main
from recipes.training.checkpoint import found
from recipes.training.loop import Trainer
from shards import stream


def asked_at(monkeypatch: pytest.MonkeyPatch, place: str, number: int, how: int) -> None:
    """Send this process the signal `how` at call `number` of the function at `place`, then wait."""
    module, name = place.rsplit(".", 1)
    target: Any = sys.modules.get(module)
    if target is None:
        outer, inner = module.rsplit(".", 1)
        target = getattr(sys.modules[outer], inner)
    real: Callable[..., Any] = getattr(target, name)
    calls: list[int] = []

    def stalled(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), how)
            time.sleep(500)
        return real(*args, **options)

    monkeypatch.setattr(target, name, stalled)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, AGAIN), (signal.SIGINT, 130)])
def test_a_stop_is_heard_while_pictures_do_not_come(
    write_recipe, monkeypatch: pytest.MonkeyPatch, caplog, number: int, code: int
) -> None:
    caplog.set_level("INFO")
    path = write_recipe()
    with monkeypatch.context() as patched:
        asked_at(patched, "shards.streaming.source.BatchSource.batch", 4, number)
        assert main([str(path), "checkpoint.every_steps=100"]) == code
    assert "base: stopped at step 3 as asked, state kept" in caplog.text
    assert [one.step for one in found(path.parent / "runs" / "base")] == [3]
    assert main([str(path)]) == 0


@pytest.mark.slow
def test_a_stop_before_the_first_step_keeps_nothing_and_says_so(
    write_recipe, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    caplog.set_level("INFO")
    path = write_recipe()
    asked_at(monkeypatch, "shards.streaming.source.BatchSource.batch", 1, signal.SIGUSR1)
    assert main([str(path)]) == AGAIN
    assert "stopped as asked, before its first step" in caplog.text
    assert not found(path.parent / "runs" / "base")


@pytest.mark.slow
def test_a_stop_is_heard_while_a_folder_is_waited_for(
    write_recipe, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    path = write_recipe()
    folder = path.parent / "runs" / "base"
    folder.mkdir(parents=True)
    held = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX);"
    held += "print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", held, str(folder / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    asked_at(monkeypatch, "pipeline.common.locks.time.sleep", 1, signal.SIGTERM)
    try:
        assert main([str(path)]) == AGAIN
    finally:
        other.kill()
        other.communicate()


def test_a_second_ctrl_c_does_not_wait() -> None:
    stop = StopRequest()
    stop.listen()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop
    assert stop.code == 130
    with pytest.raises(StopNow), stop.at_once():
        pass
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_what_is_asked_of_a_forked_child_is_not_asked_of_it() -> None:
    stop = StopRequest()
    stop.listen()
    child = multiprocessing.get_context("fork").Process(target=_ask, args=(stop,))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def _ask(stop: StopRequest) -> None:
    with stop.at_once():
        os.kill(os.getpid(), signal.SIGUSR1)
    raise SystemExit(1 if stop else 0)


@pytest.fixture
def ignoring_hangup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def test_nohup_is_respected(ignoring_hangup: None) -> None:
    assert signal.SIGHUP not in owner.heeded()
    stop = StopRequest()
    stop.listen()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop


LAUNCHER = """
import signal, subprocess, sys
from recipes.launching.owner import end_with_owner
for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
end_with_owner()
sys.exit(subprocess.run([sys.executable, sys.argv[1], sys.argv[2]]).returncode)
"""
TRAINS = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text(signal.Signals(number).name)
    sys.exit(75)
signal.signal(signal.SIGUSR1, stop)
print('trains', flush=True)
while True:
    time.sleep(0.1)
"""
# A launcher at its imports, which take long.
LOADS = """
import os, signal, time
for number in (signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
from recipes.launching.owner import end_with_owner
end_with_owner()
print(os.getpid(), flush=True)
time.sleep(600)
"""
EARLY = """
import signal, time
from recipes.launching.owner import nothing_started
with nothing_started():
    signal.raise_signal(signal.SIGTERM)
    time.sleep(600)
"""
OWNER = """
import os, signal, sys
from recipes.launching.owner import run
# The tests themselves may run where a closed terminal is ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
sys.exit(run([sys.executable, *sys.argv[1:]], dict(os.environ)))
"""


def test_a_launcher_that_dies_is_told_with_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    for number, told in {9: "SIGKILL, perhaps for want of memory", 40: "signal 40"}.items():
        words = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {number})"]
        assert owner.run(words, dict(os.environ)) == 1
        said = capfd.readouterr().err
        assert said == f"train: the launcher died of {told}; start again to go on\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"),
    [
        (signal.SIGTERM, AGAIN),
        (signal.SIGHUP, AGAIN),
        (signal.SIGINT, 130),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_nothing_trains_on_without_an_owner(
    tmp_path: Path, root: Path, how: signal.Signals, code: int
) -> None:
    for name, text in {"launcher.py": LAUNCHER, "trains.py": TRAINS, "owner.py": OWNER}.items():
        (tmp_path / name).write_text(text)
    end = tmp_path / "end"
    words = [tmp_path / "owner.py", tmp_path / "launcher.py", tmp_path / "trains.py", end]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "trains\n"
    process.send_signal(how)
    # All that write there have ended when it ends.
    assert process.stdout.read() == ""
    assert process.wait() == code
    assert end.read_text() == "SIGUSR1"


@pytest.mark.parametrize(
    ("how", "code", "held"),
    [
        (signal.SIGTERM, AGAIN, False),
        (signal.SIGTERM, AGAIN, True),
        (signal.SIGINT, 130, False),
        (signal.SIGKILL, -9, False),
    ],
)
def test_a_launcher_that_still_loads_its_libraries_ends_with_its_owner(
    tmp_path: Path, root: Path, how: signal.Signals, code: int, held: bool
) -> None:
    """Nothing that it would start is ever started."""
    (tmp_path / "launcher.py").write_text(LOADS)
    (tmp_path / "owner.py").write_text(OWNER)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "owner.py"), str(tmp_path / "launcher.py")],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    launcher = int(process.stdout.readline())
    if held:
        os.kill(launcher, signal.SIGSTOP)
    process.send_signal(how)
    assert process.stdout.read() == ""
    assert process.wait() == code


def test_training_asked_to_stop_before_it_starts_anything_says_so(
    tmp_path: Path, root: Path
) -> None:
    (tmp_path / "early.py").write_text(EARLY)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "early.py")],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == AGAIN
    assert done.stderr == "train: stopped as asked, before anything was started\n"


@pytest.mark.slow
def test_a_process_whose_launcher_was_killed_before_it_began_does_not_train(
    write_recipe, root: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(root / "recipes" / "train.py"), str(write_recipe())],
        env={**os.environ, "CCA_LAUNCHER_PID": "999999999"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == AGAIN, done.stderr
    assert not (tmp_path / "runs").exists()


def broken_import() -> None:
    """Do as numpy's C interface does with an exception that comes up in an import."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except StopNow:
        raise ImportError("numpy.core.multiarray failed to import") from None


def test_what_a_library_makes_of_being_broken_off_is_a_stop() -> None:
    """A C extension may report that its import failed, and drop the reason, or pass over it."""
    stop = StopRequest()
    stop.listen()
    with pytest.raises(StopNow), stop.at_once():
        broken_import()
    stop = StopRequest()
    stop.listen()
    with pytest.raises(StopNow), stop.at_once(), suppress(StopNow):
        signal.raise_signal(signal.SIGTERM)


def test_an_error_that_no_stop_has_caused_is_one() -> None:
    stop = StopRequest()
    stop.listen()
    with pytest.raises(OSError, match="disk full"), stop.at_once():
        raise OSError("disk full")


def test_torchs_report_ends_with_our_sentence(tmp_path: Path, monkeypatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    report_failure("train: data.train: there is no folder x")
    failure = ProcessFailure(0, 1, 2, str(file))
    assert json.loads(file.read_text())["message"]["message"]
    text = str(ChildFailedError("train.py", {0: failure}))
    assert "traceback : train: data.train: there is no folder x" in text


def keys(dest: object, workers: int) -> list[str]:
    options: dict[str, Any] = {"split": "train", "batch_size": 2, "crop": 64, "seed": 3}
    batches = stream(dest, **options, epoch=0, rank=0, world_size=1, workers=workers)  # type: ignore[arg-type]
    return [key for batch in batches for key in batch.keys]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["spawn", "forkserver"])
def test_pictures_are_loaded_however_processes_are_started(
    photo_shards: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by default in newer Pythons; a signal to the whole job does not reach the loaders."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(how, force=True)
    # Whoever started the server that forks processes knew nothing of loaders.
    first = multiprocessing.Process(target=int)
    first.start()
    first.join()
    try:
        for dest in (photo_shards, str(photo_shards / "train-*.tar")):
            alone = keys(dest, 0)
            made: list[str] = []
            options: dict[str, Any] = {"batch_size": 2, "crop": 64, "seed": 3, "epoch": 0}
            batches = stream(dest, split="train", rank=0, world_size=1, workers=1, **options)
            for number, batch in enumerate(batches):
                made += batch.keys
                if number == 0:
                    for child in multiprocessing.active_children():
                        for one in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):
                            os.kill(child.pid or 0, one)
            assert made == alone
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
def test_a_loader_that_is_killed_is_started_again_at_its_place(
    photo_shards: Path, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.streaming.stream.SETTLED", 0.0)
    alone = keys(photo_shards, 0)
    options: dict[str, Any] = {"batch_size": 2, "crop": 64, "seed": 3, "epoch": 0}
    made: list[str] = []
    batches = stream(photo_shards, split="train", rank=0, world_size=1, workers=2, **options)
    for number, batch in enumerate(batches):
        made += batch.keys
        if number == 1:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    assert made == alone
    # It may have made all of its part before.
    if "started again" in caplog.text:
        assert "was killed by SIGKILL, perhaps for want of memory" in caplog.text


@pytest.mark.slow
def test_a_loader_that_is_killed_soon_ends_the_run_with_its_state_kept(
    write_recipe, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    real = Trainer._step

    def step(trainer: Trainer, batch: Any) -> Any:
        if trainer.state.step == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
        return real(trainer, batch)

    path = str(write_recipe(checkpoint={"every_steps": 1000}))
    words = [path, "data.workers=1", "stages.0.steps=60"]
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", step)
        assert main(words) == 1
    assert "was killed by SIGKILL, perhaps for want of memory: give the job more" in caplog.text
    caplog.clear()
    assert main([*words, "stages.0.steps=8"]) == 0
    assert re.search("goes on from step [3-7]", caplog.text)
