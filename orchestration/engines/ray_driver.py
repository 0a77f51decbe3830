"""The driver of one job of a plan on Ray: `python -m orchestration.engines.ray_driver PLAN JOB`.

It takes no resources itself. Each part of the job is a team of actors, one on each node that the
job wants, and each actor runs the job's script there (`ray_node`). Ray starts actors as soon as a
node has room, one that joined the cluster a moment ago too. A team that loses a node is ended and
started again: training goes on from its last checkpoint, shards from what is missing.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestration.engines.ray_engine import SPOOL, log_names
from orchestration.engines.ray_notes import Note, write_note
from orchestration.load import profile_from
from orchestration.plan import Job, Plan
from orchestration.profile import RayProfile
from orchestration.script import AGAIN
from orchestration.states import State
from orchestration.store import read
from pipeline.common.printable import log_to
from pipeline.common.sizes import parse_size

POLL_SECONDS = 0.5
# Seconds before a team starts again: the cause that took its node may take the next one too.
PAUSES = (0.0, 5.0, 30.0, 60.0)
# Seconds for the other nodes to end once one of them has ended.
SECONDS_TO_FOLLOW = 60.0
log = logging.getLogger(__name__)


class Node:
    """Runs a job's script on the node where Ray has put this actor; nothing of ours is imported.

    What runs there ends with this process: see `ray_node`.
    """

    def __init__(self) -> None:
        self.process: Any = None

    def place(self) -> tuple[str, str, int]:
        """Return the node's name and address, and a port that is free there."""
        import socket

        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        return socket.gethostname(), ray.util.get_node_ip_address(), port

    def run(self, words: list[str], variables: dict[str, str], log: str) -> int:
        """Run the command with more variables and a log; return its exit code at its end."""
        import os
        import subprocess

        # A shell in between: when a worker dies, Ray kills the worker's children, and what is to
        # notice that death must not be one of them.
        with Path(log).open("ab") as written:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", '"$@"; exit $?', "sh", *words],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )
        return int(self.process.wait())

    def stop(self) -> None:
        """Ask what runs to end, while `run` waits for it."""
        if self.process is not None and self.process.poll() is None:
            self.process.stdin.write(b"stop\n")
            self.process.stdin.flush()


@dataclass
class Team:
    """One part of a job: its actors, and what they have been asked."""

    label: str
    variables: dict[str, str]
    restarts: int = 0
    due: float = 0.0
    """When it may start, by the monotonic clock."""
    actors: list[Any] = field(default_factory=list)
    group: PlacementGroup | None = None
    asked: list[Any] = field(default_factory=list)
    """What the actors have been asked and have not answered."""
    nodes: str = ""
    running: bool = False
    wrong_since: float | None = None
    """When the first of several nodes had failed, by the monotonic clock."""
    over: bool = False
    stopped: bool = False


class Driver:
    """Runs all parts of one job."""

    def __init__(self, plan: Plan, folder: Path, job: Job, profile: RayProfile) -> None:
        self.plan, self.folder, self.job, self.profile = plan, folder, job, profile
        self.stopping = False
        parts = range(job.parts)
        self.teams = [
            Team(label, {"PART": str(part)}) for part, label in zip(parts, job.labels, strict=True)
        ]
        self.codes: list[int] = []

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: start nothing more, let what runs keep its state and end."""
        self.stopping = True

    def run(self) -> int:
        """Run until each part has ended; return the exit code of the job."""
        while left := [team for team in self.teams if not team.over]:
            for team in left:
                if self.stopping and not team.stopped:
                    self._stop(team)
                elif not team.actors and time.monotonic() >= team.due:
                    self._gather(team)
                elif team.asked:
                    self._listen(team)
            time.sleep(POLL_SECONDS)
        return max(self.codes, default=0)

    def _gather(self, team: Team) -> None:
        """Ask Ray for a team's nodes, and what they are called."""
        wanted = self.job.resources
        amounts: dict[str, Any] = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus}
        amounts["resources"] = self.profile.ray_resources
        if wanted.memory:
            amounts["memory"] = parse_size(wanted.memory)
        # Actors of two threads: one runs, and one hears that it is to stop.
        amounts |= {"max_concurrency": 2, "max_restarts": 0}
        if wanted.nodes > 1:
            team.group = placement_group([_bundle(amounts)] * wanted.nodes, "STRICT_SPREAD")
        team.actors = [self._actor(team, amounts, index) for index in range(wanted.nodes)]
        team.asked = [actor.place.remote() for actor in team.actors]
        self._note(team, State.QUEUED, _wish(wanted, self.profile))

    def _actor(self, team: Team, options: dict[str, Any], index: int) -> Any:
        if team.group is not None:
            place = PlacementGroupSchedulingStrategy(team.group, placement_group_bundle_index=index)
            options = {**options, "scheduling_strategy": place}
        return ray.remote(Node).options(**options).remote()

    def _listen(self, team: Team) -> None:
        """Handle the team's answers: first its addresses, then the exit codes of its scripts."""
        answered, _ = ray.wait(team.asked, num_returns=len(team.asked), timeout=0)
        if not answered:
            return
        try:
            answers = ray.get(answered)
        except ray.exceptions.OutOfMemoryError as error:
            self._fail(team, 1, f"killed, as the memory of its node ran out ({_first(error)})")
        except ray.exceptions.RayError as error:
            self._again(team, f"lost a node: {_first(error)}")
        else:
            if team.running:
                self._ended(team, answers, len(answered) == len(team.asked))
            elif len(answered) == len(team.asked):
                self._start(team, answers)

    def _start(self, team: Team, places: Sequence[tuple[str, str, int]]) -> None:
        """Start the script on each of a team's nodes, which meet at the first one."""
        team.nodes = ",".join(dict.fromkeys(name for name, _, _ in places))
        _, head, port = places[0]
        team.running, team.asked = True, []
        logs = log_names(team.label, len(places))
        for index, (actor, log) in enumerate(zip(team.actors, logs, strict=True)):
            variables = {**team.variables, "HEAD": head, "PORT": str(port), "NODE": str(index)}
            words = [sys.executable, "-P", "-m", "orchestration.engines.ray_node"]
            words += [str(self.folder / f"{self.job.name}.sh")]
            words += ["train" if self.job.resumable else "other", str(self.profile.grace_seconds)]
            path = str(self.folder / "logs" / log)
            team.asked.append(actor.run.remote(words, variables, path))
        self._note(team, State.RUNNING)

    def _ended(self, team: Team, codes: Sequence[int], all_ended: bool) -> None:
        wrong = [code for code in codes if code != 0]
        if not all_ended and not (wrong and self._waited_enough(team)):
            return
        if not wrong:
            self._over(team, 0, Note(State.DONE, nodes=team.nodes, restarts=team.restarts))
        elif self.stopping:
            self._over(team, 1, Note(State.CANCELLED, "stopped", team.nodes))
        elif all(code == AGAIN for code in wrong):
            self._again(team, "stopped after a checkpoint")
        else:
            self._fail(team, wrong[0], f"exit code {wrong[0]}")

    def _waited_enough(self, team: Team) -> bool:
        """Return whether the nodes beside one that failed had time to end, or to be found lost.

        A node that is lost makes training fail on the others before Ray knows of the loss.
        """
        team.wrong_since = team.wrong_since or time.monotonic()
        return time.monotonic() - team.wrong_since > SECONDS_TO_FOLLOW

    def _again(self, team: Team, reason: str) -> None:
        """End what is left of a team and start it anew, if it may."""
        if self.stopping:
            self._over(team, 1, Note(State.CANCELLED, "stopped", team.nodes))
            return
        if team.restarts >= self.profile.requeues:
            self._fail(team, 1, f"{reason}; it was started again {team.restarts} times")
            return
        self._dismiss(team)
        pause = PAUSES[min(team.restarts, len(PAUSES) - 1)]
        team.restarts, team.due = team.restarts + 1, time.monotonic() + pause
        team.running, team.wrong_since = False, None
        self._note(team, State.QUEUED, reason)
        log.info("%s: %s; starts again", team.label, reason)

    def _stop(self, team: Team) -> None:
        team.stopped = True
        if not team.running:
            self._over(team, 1, Note(State.CANCELLED, "stopped"))
            return
        for actor in team.actors:
            actor.stop.remote()

    def _fail(self, team: Team, code: int, reason: str) -> None:
        self._over(team, code, Note(State.FAILED, reason, team.nodes, restarts=team.restarts))

    def _over(self, team: Team, code: int, note: Note) -> None:
        team.over = True
        self._dismiss(team)
        self.codes.append(code)
        write_note(self.folder / SPOOL, team.label, note)
        log.info("%s: %s %s", team.label, note.state, note.reason)

    def _dismiss(self, team: Team) -> None:
        """Give the team's nodes back; what still runs there is killed."""
        for actor in team.actors:
            ray.kill(actor)
        if team.group is not None:
            remove_placement_group(team.group)
        team.actors, team.asked, team.group = [], [], None

    def _note(self, team: Team, state: State, reason: str = "") -> None:
        since = time.time() if state == State.RUNNING else None
        note = Note(state, reason, team.nodes if since else "", since, team.restarts)
        write_note(self.folder / SPOOL, team.label, note)


def _bundle(amounts: dict[str, Any]) -> dict[str, float]:
    """Return a bundle of a placement group that holds one actor of `amounts`."""
    bundle = {"CPU": amounts["num_cpus"], "GPU": amounts["num_gpus"], **amounts["resources"]}
    bundle["memory"] = amounts.get("memory", 0)
    return {name: float(amount) for name, amount in bundle.items() if amount}


def _wish(wanted: Any, profile: RayProfile) -> str:
    """Return the resources that a job waits for, in words."""
    amounts = {"CPU": wanted.cpus, "GPU": wanted.gpus, **profile.ray_resources}
    words = [f"{name} {amount:g}" for name, amount in amounts.items() if amount]
    words += [f"memory {wanted.memory}"] if wanted.memory else []
    nodes = f"{wanted.nodes} nodes" if wanted.nodes > 1 else "a node"
    return f"for {nodes} with this free: {', '.join(words)}"


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def main(arguments: Sequence[str]) -> int:
    """Run the job `arguments[1]` of the plan in the folder `arguments[0]`."""
    folder, name = Path(arguments[0]), arguments[1]
    plan = read(folder)
    profile = profile_from(plan.profile, str(folder))
    assert isinstance(profile, RayProfile)
    log_to(sys.stdout)
    ray.init(log_to_driver=False)
    driver = Driver(plan, folder, plan.job(name), profile)
    signal.signal(signal.SIGTERM, driver.stop)
    return driver.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
