"""An engine is a class, a profile, and an entry of `ENGINES`: no other module names one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from orchestration import control
from orchestration.engines.base import Finding
from orchestration.load import ENGINES, EngineEntry, load_profile
from orchestration.plan import Plan
from orchestration.profile import Profile, Text
from orchestration.sites import findings
from orchestration.states import JobStatus, State
from tests.cluster.tools import job, made_plan


class ClerkProfile(Profile):
    """Somebody who types what a file says."""

    engine: Literal["clerk"]
    desk: Text = "1"


class Clerk:
    pause = 0.0

    def __init__(self, profile: ClerkProfile) -> None:
        self.profile = profile

    def scripts(self, plan: Plan, folder: Path) -> dict[str, str]:
        return {f"{job.name}.sh": " ".join(job.words) for job in plan.jobs}

    def submit(self, plan: Plan, folder: Path, names: Sequence[str]) -> None:
        (folder / "desk").write_text(" ".join(names))

    def statuses(self, plan: Plan, folder: Path) -> Mapping[str, JobStatus]:
        names = (folder / "desk").read_text().split()
        return {
            name: JobStatus(name, State.QUEUED, f"at desk {self.profile.desk}") for name in names
        }

    def log_files(self, plan: Plan, folder: Path, name: str) -> list[Path]:
        return []

    def cancel(self, plan: Plan, folder: Path) -> None:
        (folder / "desk").write_text("")


def look_around(profile: ClerkProfile) -> Iterator[Finding]:
    yield "ok", "desk", f"desk {profile.desk} is free"


def test_an_engine_is_added_by_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    find = {"lost": elsewhere}.get
    monkeypatch.setitem(ENGINES, "clerk", EngineEntry(ClerkProfile, Clerk, look_around, find))
    (tmp_path / "clerk.yaml").write_text("engine: clerk\ndesk: 7\n")
    told = list(findings(load_profile("clerk.yaml")))
    assert ("ok", "desk", "desk 7 is free") in told

    made = made_plan(tmp_path, ClerkProfile(engine="clerk", desk="7"), [job("first", "true")])
    assert control.schedule(made) == ["first"]
    assert [one.reason for one in control.status(made.plan, made.folder)] == ["at desk 7"]
    made.folder.rename(elsewhere)
    assert control.find("lost") == (made.plan, elsewhere)
    control.cancel(made.plan, elsewhere)
    assert (elsewhere / "desk").read_text() == ""
