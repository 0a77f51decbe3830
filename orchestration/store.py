"""Keeps plans: a folder for each, with all that was submitted. States are asked of its engine."""

from __future__ import annotations

import getpass
import logging
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from orchestration.errors import OrchestrationError
from orchestration.plan import Plan
from pipeline.common.atomic import write_json, write_text
from pipeline.common.documents import parse

FOLDER = "plans"
# Schedulers limit what they call a job, and Kubernetes a label to 63 characters.
LONGEST_NAME = 40
log = logging.getLogger(__name__)
FILE = "plan.json"
FORMAT = 1
# Who has cancelled which jobs; a job that finds it does not queue itself again.
CANCELLED_FILE = "cancelled.json"


def new_id(name: str) -> str:
    """Return an id for a plan of recipe `name`: readable, sorted by time, and used once."""
    day = datetime.now(UTC).strftime("%y%m%d-%H%M")
    return f"{name[:LONGEST_NAME]}-{day}-{secrets.token_hex(2)}"


def save(plan: Plan, folder: Path) -> None:
    """Write the plan's file; it never changes afterwards."""
    write_text(folder / FILE, plan.model_dump_json(indent=1) + "\n")


def read(folder: Path) -> Plan:
    """Return the plan in `folder`; raises `OrchestrationError` when there is none."""
    try:
        text = (folder / FILE).read_bytes()
    except OSError as error:
        raise OrchestrationError(f"{folder} holds no plan ({FILE} is missing)") from error
    try:
        return Plan.model_validate_json(text)
    except ValidationError as error:
        number = _format_of(text)
        if number > FORMAT:
            raise OrchestrationError(
                f"{folder / FILE} is of format {number}, newer than this version's {FORMAT}: use"
                " the version that scheduled it"
            ) from error
        raise OrchestrationError(
            f"{folder / FILE} is no plan that this version reads: {error.error_count()} fields"
            " are wrong; schedule the recipe again"
        ) from error


def _format_of(text: bytes) -> int:
    """Return the number of the format that a plan's file is in; 0 where it names none."""
    try:
        number = parse(text)["format"]
    except (ValueError, TypeError, KeyError):
        return 0
    return number if isinstance(number, int) else 0


def note_cancelled(folder: Path, names: Sequence[str]) -> None:
    """Keep who cancels the jobs called `names`, in the plan's folder, for `status` and for them."""
    when = f"{datetime.now().astimezone():%Y-%m-%d %H:%M}"
    said = dict.fromkeys(names, f"cancelled by {getpass.getuser()}, {when}")
    write_json(folder / CANCELLED_FILE, read_cancelled(folder) | said)


def read_cancelled(folder: Path) -> dict[str, str]:
    """Return who cancelled and when, by name of the job."""
    try:
        said = parse((folder / CANCELLED_FILE).read_bytes())
        return {str(name): str(who) for name, who in said.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def forget_cancelled(folder: Path) -> dict[str, str]:
    """Let the plan's jobs queue themselves again; return who had cancelled them."""
    said = read_cancelled(folder)
    (folder / CANCELLED_FILE).unlink(missing_ok=True)
    return said


def restore_cancelled(folder: Path, said: Mapping[str, str]) -> None:
    """Undo `forget_cancelled`, with what it returned."""
    if said:
        write_json(folder / CANCELLED_FILE, dict(said))


def plans(place: Path) -> list[tuple[Plan, Path]]:
    """Return the plans under the working folder `place` and their folders, oldest first.

    A plan that can't be read, because another version wrote it, is left out with a warning.
    """
    found = []
    for path in (place / FOLDER).glob(f"*/{FILE}"):
        try:
            found.append((read(path.parent), path.parent))
        except OrchestrationError as error:
            log.warning("%s", error)
    return sorted(found, key=lambda pair: (pair[0].created, pair[0].id))
