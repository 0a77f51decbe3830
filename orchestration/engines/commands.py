"""Run a scheduler's own command."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from orchestration.errors import EngineError, UnansweredError

# A controller that is down makes its clients hang for a minute or more.
SECONDS = 60


def output_of(
    words: Sequence[str], *, seconds: float = SECONDS, environment: Mapping[str, str] | None = None
) -> str:
    """Return what the command prints; `environment` in place of this process's own.

    Raises `EngineError` with the command's own words when it fails, is missing or doesn't answer.
    """
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=seconds, env=environment
        )
    except FileNotFoundError:
        raise EngineError(f"there is no command {words[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise UnansweredError(
            f"{words[0]} has not answered for {seconds:g} s: is its controller running?"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UnansweredError(f"{words[0]} failed: {said}")
    return done.stdout
