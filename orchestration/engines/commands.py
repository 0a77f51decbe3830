"""Run a scheduler's own command."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence

from orchestration.errors import EngineError, UnansweredError

# Seconds to wait for an answer: a controller that is down makes its clients hang for a minute.
SECONDS = 60
LONGEST_QUOTE = 300


def output_of(
    words: Sequence[str], *, seconds: float = SECONDS, environment: Mapping[str, str] | None = None
) -> str:
    """Return what the command prints; `environment` in place of this process's own.

    Bytes that are no UTF-8 become question marks: what a tool prints is never trusted to be text.

    Raises:
        EngineError: there is no such command, or it can't be run.
        UnansweredError: it failed or gave no answer in time; the message holds its own words.
    """
    try:
        done = subprocess.run(
            words,
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise EngineError(f"there is no command {words[0]} on this machine") from None
    except OSError as error:
        raise EngineError(f"{words[0]} can't be run: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UnansweredError(
            f"{words[0]} has not answered for {seconds:g} s: is its controller running?"
        ) from None
    if done.returncode:
        said = quoted(done.stderr) or quoted(done.stdout) or f"exit code {done.returncode}"
        raise UnansweredError(f"{words[0]} failed: {said}")
    return done.stdout


def quoted(text: str) -> str:
    """Return what a tool has printed as one line; only the end, if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_QUOTE else f"... {line[-LONGEST_QUOTE:]}"
