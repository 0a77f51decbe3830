"""The main job, disturbed at random instants, ends as if nothing had been.

    python -m tests.proof.kills [--minutes 60 | --rounds N] [--seed 0] [--often 1] [--local]

shards, trains, fine-tunes, evaluates, registers and compresses tiny things over and over. Meanwhile
it kills any process of the tree, or all, stops and continues them, fills the disk, lets the object
store and the tracking server fail, stall, and cut answers short, kills the tracking server, and
changes the clock by an hour, and the time zone. Each command is then given again, as a user would.
At the end of a round every file, weight, metric and version is compared with those of a round that
nobody disturbed. It prints what was survived, and what was lost; exit 1 if anything was. `--local`
does without servers: shards in a folder, and an embedded tracking store.

The seed decides what is done and when, but not what the machine is busy with at that instant.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.patience import patience
from tests.proof import main_job
from tests.proof.disturbing import (
    CUT,
    FAIL,
    HOUR,
    OPEN,
    STALL,
    ZONES,
    Clock,
    around,
)
from tests.proof.forking import forked, import_all, typed, waited
from tests.proof.main_job import Stage
from tests.proof.world import BUCKET, KINDS, World, world

SECONDS_AT_MOST = 240.0  # an attempt that takes longer, on an idle machine, hangs
# The share of rounds in which a command is typed whole, whose start-up takes longer than its work.
WHOLE = 0.15
# What a command may end with while it is disturbed: 75 asks to be run again.
USUAL = {0, 1, 75, 130, -signal.SIGKILL, -signal.SIGTERM}
# A command that meets its own killed predecessor, which has not quite ended, says so.
STILL_THERE = re.compile(r"being written by|another process|is in use|locked by")


class Rounds:
    """Does rounds of the main job in a world, and counts what was done to them."""

    def __init__(
        self, world: World, store: str, seed: int, chosen: list[str], often: int = 1
    ) -> None:
        self.world, self.store, self.chosen, self.often = world, store, chosen, often
        self.dice = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.losses: list[str] = []
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, str] = {}
        self.number, self.whole = 0, False
        self.log = world.folder / "log"

    def round(self, *, disturbed: bool = True) -> None:
        """Do the main job once, and compare what it leaves."""
        self.number += 1
        self.whole = self.number == 1 or (disturbed and self.dice.random() < WHOLE)
        # Without a stage that trains, by the model that comes with the package.
        model = ("box",) if "fine-tune" not in self.chosen else ()
        every = main_job.stages(self.store, *model)
        chosen = [stage for stage in every if stage.name in self.chosen]
        # After a stage that did not end well, the others and a comparison would say nothing.
        if all(
            self._stage(one, self.dice.randint(1, self.often * one.most) if disturbed else 0)
            for one in chosen
        ):
            self._compare(f"round {self.number}")
        self.world.heal()
        self._empty()

    def _stage(self, stage: Stage, times: int) -> bool:
        """Do a stage, disturbed so often, then undisturbed; return whether it ended well."""
        left = times
        while left > 0:
            code, used = self._attempt(stage, left)
            left -= used
            self.codes[f"{stage.name} {code}"] += 1
            if not used and code == 0:
                break
        self.world.heal()
        start, at = time.monotonic(), self._logged()
        code, _ = self._attempt(stage, 0)
        if not times and not self.whole:
            self.seconds[stage.name] = max(0.5, time.monotonic() - start)
        if code != 0:
            what = f"{stage.name}: ended with {code} although nothing disturbed it any more"
            self._lost(what, self._said(at))
        self._gone(stage)
        return code == 0

    def _logged(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def _said(self, at: int) -> str:
        return self.log.read_bytes()[at:].decode(errors="replace")

    def _attempt(self, stage: Stage, times: int) -> tuple[int, int]:
        """Run a stage, disturbed so often at most; return its code and how often it was."""
        at = self._logged()
        process = self._started(stage)
        span = self.seconds.get(stage.name, 5.0)
        used, end = 0, time.monotonic() + patience(SECONDS_AT_MOST)
        while True:
            pause = around(self.dice, span) if used < times else end - time.monotonic()
            status = waited(process, pause)
            if status is not None:
                break
            if used < times:
                used += self._disturb(process)
            elif time.monotonic() > end:
                self._lost(f"{stage.name}: hangs")
                self.world.family.send(signal.SIGKILL, self.world.family.members())
        code = os.waitstatus_to_exitcode(status)
        self._judge(stage, code, at)
        if times == 0 or self.dice.random() < 0.5:
            self._gone(stage)
        self.world.family.reap(0)
        return code, used

    def _started(self, stage: Stage) -> int:
        environment = {**self.world.environment, "TZ": self.dice.choice(ZONES)}
        if stage.whole and self.whole:
            command = [sys.executable, "-m", "pipeline.cli.main", *stage.whole]
            return forked(self.log, environment, lambda: os.execv(command[0], command))
        return forked(self.log, environment, lambda: typed(list(stage.words)))

    def _disturb(self, process: int) -> int:
        """Do one thing to the attempt `process`; return 1, or 0 if it had ended."""
        kinds = self.world.possible()
        kind = self.dice.choices(list(kinds), list(kinds.values()))[0]
        members = self.world.family.members()
        if not members:
            return 0
        one = self.dice.choice(members)
        if kind == "kill":
            sent = self.world.family.send(signal.SIGKILL, [one])
        elif kind == "power cut":
            sent = self.world.family.send(signal.SIGKILL, members)
        elif kind == "SIGTERM":
            sent = self.world.family.send(signal.SIGTERM, [one])
        else:
            with self._for_a_while(kind, members, one) as longest:
                waited(process, around(self.dice, longest), reap=False)
            sent = 1
        self.done[kind] += bool(sent)
        self.done["processes killed"] += sent if kind in ("kill", "power cut") else 0
        return int(bool(sent))

    @contextlib.contextmanager
    def _for_a_while(self, kind: str, members: list[object], one: object) -> Iterator[float]:
        """Disturb until the block ends; yield how many seconds that should take at most."""
        world = self.world
        if kind == "SIGSTOP":
            chosen = members if self.dice.random() < 0.3 else [one]
            world.family.send(signal.SIGSTOP, chosen)
            yield 4.0
            world.family.send(signal.SIGCONT, chosen)
        elif kind == "full disk":
            world.disk.fill(self.dice.randrange(300_000))
            yield 4.0
            world.disk.free()
        elif kind in ("bad store", "bad tracking"):
            line = world.lines[kind.removeprefix("bad ")]
            line.set(self.dice.choice([FAIL, STALL, CUT]))
            yield 6.0
            line.set(OPEN)
        elif kind == "dead server":
            assert world.server is not None
            world.server.kill()
            world.family.own.add(world.server.launch())
            yield 6.0
        else:
            assert world.clock is not None
            Clock.set(world.clock, self.dice.choice([-HOUR, 0, HOUR]))
            yield 0.1

    def _judge(self, stage: Stage, code: int, at: int) -> None:
        """Look at how an attempt ended and at what it said from byte `at` of the log on."""
        said = self._said(at)
        if "Traceback (most recent call last)" in said:
            self._lost(f"{stage.name}: showed a traceback", said)
        elif code not in USUAL and not (code == 2 and STILL_THERE.search(said)):
            self._lost(f"{stage.name}: ended with {code}", said)

    def _gone(self, stage: Stage) -> None:
        """Wait until nothing of an attempt is left."""
        self.world.family.send(signal.SIGCONT, self.world.family.members())
        end = time.monotonic() + patience(60)
        while members := self.world.family.members():
            if time.monotonic() > end:
                words = [" ".join(one.cmdline())[:200] for one in members]
                self._lost(f"{stage.name}: left processes behind: {words}")
                self.world.family.send(signal.SIGKILL, members)
            time.sleep(0.02)
            self.world.family.reap(0)

    def _compare(self, name: str) -> None:
        found = self._inspected()
        if not self.expected:
            self.expected = found
            return
        for key in sorted(self.expected.keys() | found.keys()):
            if key not in found:
                self._lost(f"{name}: {key} is missing")
            elif key not in self.expected:
                self._lost(f"{name}: {key} is there, and should not be: {found[key]}")
            elif found[key] != self.expected[key]:
                self._lost(f"{name}: {key} differs: {difference(self.expected[key], found[key])}")

    def _inspected(self) -> dict[str, str]:
        target = self.world.folder / "snapshot.json"
        place = self.world.disk.folder

        def look() -> int:
            target.write_text(json.dumps(main_job.snapshot(place, self.store)))
            return 0

        self._called(look)
        found: dict[str, str] = json.loads(target.read_text())
        return found

    def _empty(self) -> None:
        for place in (main_job.RUNS, main_job.REPORT, main_job.FILES, "cache", self.store):
            shutil.rmtree(self.world.disk.folder / place, ignore_errors=True)
        self._called(lambda: empty(self.store, self.number))

    def _called(self, work: Callable[[], int]) -> None:
        """Do `work` in a process of its own."""
        process = forked(self.log, self.world.environment, work)
        status = waited(process, patience(SECONDS_AT_MOST))
        assert status == 0, self.log.read_text(errors="replace")[-2000:]
        self.world.family.reap(0)

    def _lost(self, what: str, said: str = "") -> None:
        self.losses.append(what)
        say(f"LOST: {what}")
        if said:
            say("  | " + "\n  | ".join(said.strip().splitlines()[-25:]))


def empty(store: str, number: int) -> int:
    """Remove all objects of `store`, if that is S3's, and rename what round `number` tracked."""
    main_job.rename(number)
    if "://" in store:
        for key, _ in list(main_job.objects(store)):
            main_job.s3().delete_object(Bucket=BUCKET, Key=key)
    return 0


def difference(one: str, other: str) -> str:
    """Return the places where two texts first differ."""
    pairs = enumerate(zip(one, other, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    return f"...{one[max(0, at - 60) : at + 60]}... is ...{other[max(0, at - 60) : at + 60]}..."


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def _make_bucket(made: Rounds) -> None:
    def make() -> int:
        main_job.s3().create_bucket(Bucket=BUCKET)
        return 0

    if "://" in made.store:
        made._called(make)


def main() -> int:
    """Disturb for as long as asked; print the figures; return 1 if anything was lost."""
    parser = argparse.ArgumentParser("tests.proof.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, help="so many rounds, however long they take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--often", type=int, default=1, help="so many times the disturbances")
    parser.add_argument("--local", action="store_true", help="without servers")
    names = [stage.name for stage in main_job.stages("")]
    parser.add_argument("--stages", default=",".join(names), help="only these, with commas")
    parser.add_argument("--keep", action="store_true", help="keep the folder")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    place = Path(tempfile.mkdtemp(prefix="kills-"))
    if "PROOF_CLOCK" not in os.environ:
        clock = Clock(place)
        if clock.works:  # again, with a clock that can be set
            os.environ.update(clock.environment)
            os.execv(sys.executable, [sys.executable, "-m", "tests.proof.kills", *sys.argv[1:]])
    import_all(given.stages.split(","))
    with world(place, local=given.local) as (made, store):
        rounds = Rounds(made, store, given.seed, given.stages.split(","), given.often)
        _make_bucket(rounds)
        end = time.monotonic() + 60 * given.minutes
        for _ in range(2):
            rounds.round(disturbed=False)
        assert not rounds.losses, "two rounds that nobody disturbed differ"
        say(f"{len(rounds.expected)} things to compare; two undisturbed rounds are equal")
        say(f"seconds undisturbed: { {k: round(v, 1) for k, v in rounds.seconds.items()} }")
        number = 0
        while number < given.rounds if given.rounds else time.monotonic() < end:
            rounds.round()
            number += 1
            say(f"round {number}: {dict(rounds.done)}, {len(rounds.losses)} lost")
    say("\n| disturbance | times |\n|---|---|")
    for kind in (*KINDS, "processes killed"):
        say(f"| {kind} | {rounds.done[kind]} |")
    say(f"\n{number} rounds; exit codes: {dict(sorted(rounds.codes.items()))}")
    say(f"{len(rounds.losses)} lost or doubled")
    if given.keep or rounds.losses:
        say(f"the logs are in {place}")
    else:
        shutil.rmtree(place, ignore_errors=True)
    return int(bool(rounds.losses))


if __name__ == "__main__":
    sys.exit(main())
