"""The words that Slurm has for a job's state, and what is said of them."""

from __future__ import annotations

import pytest

from orchestration.engines.slurm_states import STATES, reason_of, state_of
from orchestration.states import State

# https://slurm.schedmd.com/job_state_codes.html (25.05) and `man squeue` (22.05): what has ended,
# what has nodes, what waits.
ENDED = (
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED RECONFIG_FAIL"
    " REVOKED TIMEOUT"
)
HAS_NODES = (
    "RUNNING SUSPENDED COMPLETING CONFIGURING EXPEDITING POWER_UP_NODE RESIZING SIGNALING STAGE_OUT"
    " STOPPED UPDATE_DB"
)
WAITS = "PENDING LAUNCH_FAILED REQUEUED REQUEUE_FED REQUEUE_HOLD RESV_DEL_HOLD SPECIAL_EXIT"


@pytest.mark.parametrize("word", [*ENDED.split(), *HAS_NODES.split(), *WAITS.split()])
def test_every_state_of_slurms_documentation_is_known(word: str) -> None:
    state = state_of(word, "None")
    if word in WAITS.split():
        assert state == State.QUEUED
    elif word in HAS_NODES.split():
        assert state == State.RUNNING
    else:
        assert not state.active
        assert (state == State.DONE) == (word == "COMPLETED")
    said = reason_of(word, "None", "0", "12")
    assert bool(said) == (
        word not in {"RUNNING", "COMPLETING", "COMPLETED", "PENDING"} | {"FAILED", "CANCELLED"}
    )


def test_documentation_and_table_have_the_same_states() -> None:
    assert {*ENDED.split(), *HAS_NODES.split(), *WAITS.split()} == set(STATES)


@pytest.mark.parametrize(
    ("word", "why", "code", "reason"),
    [
        ("PREEMPTED", "None", "0", "preempted for good: the partition cancels what it preempts"),
        ("OUT_OF_MEMORY", "OutOfMemory", "0", "out of memory"),
        ("TIMEOUT", "TimeLimit", "0", "time limit"),
        ("FAILED", "NonZeroExitCode", "3", "exit code 3"),
        ("CANCELLED by 0", "None", "0", "cancelled by root"),
        ("CANCELLED by 4012345", "None", "0", "cancelled by user 4012345"),
        ("PENDING", "Resources", "0", "Resources"),
        ("PENDING", "JobHeldUser", "0", "JobHeldUser: `scontrol release 12` lets it go"),
        ("SPECIAL_EXIT", "None", "0", "SPECIAL_EXIT: `scontrol release 12` lets it go"),
        (
            "PENDING",
            "launch failed requeued held",
            "0",
            "launch failed requeued held: `scontrol release 12` lets it go",
        ),
        ("NEWSTATE", "None", "0", "Slurm says NEWSTATE, which this version does not know"),
    ],
)
def test_reasons_can_be_understood(word: str, why: str, code: str, reason: str) -> None:
    assert reason_of(word, why, code, "12_3") == reason
